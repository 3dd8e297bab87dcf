"""Answers to one question with options, by the option that people read in them.

The options are A: red, B: blue, C: a red star, D: none of the above.
"""

OPTIONS = {"A": "red", "B": "blue", "C": "a red star", "D": "none of the above"}

TEXTS: dict[str | None, tuple[str, ...]] = {
    "A": (
        "A", "a", "A.", "(A)", "(a)", "[A]", "A)", "**A**", "`A`", "'A'", '"A"', " A \n", "A:",
        "<answer>A</answer>", "<answer> A. red", "\\boxed{A}", "$\\boxed{\\text{A}}$", "Ａ",
        "（A）",
        "A. red", "A) red", "(A) red", "A: red", "A - red", "A, since it is red", "A\nIt is red.",
        "The answer is A", "The answer is A.", "The answer is (A).", "the answer is (a)",
        "The answer is a.", "The correct answer is A because it is red.",
        "The correct answer is option A.", "The correct option is (A) red.",
        "Answer: A", "answer: a", "Answer: (A) red", "ANSWER: A", "Answer:A", "Answer - A",
        "**Answer:** A", "### Answer\n\nA. red", "Answer:\nA", "Final answer: A",
        "The final answer is: $\\boxed{A}$", "I choose A.", "I would choose A",
        "I'd go with A: red.",
        "I think it's A", "Option A", "Option (A) is correct.", "Choice A", "My choice: A",
        "A is correct.", "A is the correct answer.", "It should be option A.", "It is (A).",
        "red", "Red", "Red.", "RED!", " red\n", "It is red.", "The color of it is red.",
        "The shape is red, I think.", "<think>B or C? No.</think>\nA", "so it is B?</think>A",
        "<think>The answer is B.</think>The answer is A.", "[THINK]B[/THINK] A",
        "I first thought the answer is B, but the answer is A.",
        "The answer is B. No, wait. The answer is A.", "It is not B. The answer is A.",
        "It isn't blue (B), it is A.", "B is wrong, so A.", "Option B is incorrect; option A.",
        "A不是B", "答案是A", "答案：A", "答案:A。", "正确答案是A。", "选A", "我选择A",
        "A选项正确", "应该选A",
        "正解はAです", "答えはAです。", "정답은 A입니다", "정답: A", "Die Antwort ist A.",
        "Die richtige Antwort ist A.", "Antwort: A", "La réponse est A.", "La bonne réponse est A",
        "Odpowiedź: A", "Svaret är A, svar: A", "Đáp án: A", "उत्तर: A", "الإجابة: A", "Cevap: A",
        "Jawabannya: A", "Antwoord: A", "答え：A", "正確選項是A", "應選A", "Відповідь: A", "답: A",
        "Réponse : A", "La respuesta es A.", "La respuesta correcta es la opción A.",
        "Respuesta: A", "A resposta é A.", "La risposta è A.", "Ответ: A", "Ответ A.",
    ),
    "B": (
        "B", "b.", "(B) blue", "B. blue", "The answer is B because A is wrong", "blue",
        "It's blue.", "I pick B", "We select (B).", "Most likely B.", "It must be (B), I guess.",
        "My final answer is B", "So, B.", "Correct answer: B",
        "B\n\nBecause A is red.", "Let me see.\nA is wrong.\n\nB", "not A but B",
        "B, because the star in it is not red", "**B. blue**", "Therefore, the answer is **B**.",
        "blue (B)", "The answer is: blue (B)", "The correct option is **B. blue**.",
        "Among these, blue is right", "B: The color is blue, while A is red",
        "Based on the image, the answer should be B.", "Thus, B is the right one.",
    ),
    "C": (
        "C", "c)", "a red star", "A red star.", "It is a red star.", "A red star is shown.",
        "The answer is a red star.", "Answer: A red star", "The image shows a red star",
        "C. a red star", "A is red, but the answer is C", "(C)", "A red star, in fact",
    ),
    "D": (
        "D", "d", "None of the above", "none of the above.", "D. none of the above",
        "It is none of the above.", "The answer is D, none of the above", "(D) None of the above.",
    ),
    None: (
        "", " ", "...", "?", "E", "The answer is E.", "Z", "I", "yes", "I do not know.",
        "I cannot answer that.", "A or B", "A and B", "A, B and C are all right.", "Both A and B",
        "A/B", "(A) and (B)", "A. red\nB. blue", "red or blue", "It is red and blue.", "A\nor\nB",
        "Either red or blue", "green", "a green circle", "A dog is sitting on it.", "A circle",
        "It is not B.", "The answer is not A.", "A is wrong.", "<think>A", "<think>It is A. So the",
        "Both A and B show blue", "The reddish one", "redder", "I see a star", "5", "1.",
        "None", "All of them", "ABC", "The letter is unclear", "不知道", "A和B", "わかりません",
    ),
}  # fmt: skip
