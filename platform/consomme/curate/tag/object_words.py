"""English words for the six objects that most pictures of the web show.

Nouns are listed in the singular; plurals follow by rule, or are listed in `IRREGULAR`. `HINTS` are
parts and places, used only if a text names no object, so that a "cat face" is an animal and a
"smiling face" a person. `OTHER` are misleading names: a teddy bear is no animal.

Source of the six objects: POINTS, arXiv 2409.04828, appendix E. The words are ours.
"""

from __future__ import annotations

WORDS = {
    "person": """
        person, human, man, woman, boy, girl, child, kid, baby, infant, toddler, teenager, teen,
        adult, guy, lady, gentleman, people, crowd, couple, family, team, audience, group of people,
        friend, husband, wife, spouse, bride, groom, bridesmaid, mother, mom, mum, father, dad,
        parent, son, daughter, brother, sister, sibling, grandmother, grandma, grandfather, grandpa,
        uncle, aunt, cousin, king, queen, prince, princess, emperor, knight, samurai, pirate, ninja,
        cowboy, doctor, nurse, surgeon, dentist, patient, teacher, professor, student, pupil,
        graduate, scientist, engineer, programmer, technologist, mechanic, worker, builder,
        carpenter, plumber, electrician, farmer, gardener, fisherman, hunter, cook, chef, baker,
        waiter, waitress, bartender, barista, butcher, artist, painter, sculptor, photographer,
        designer, writer, author, poet, journalist, reporter, actor, actress, singer, dancer,
        musician, guitarist, drummer, pianist, violinist, dj, rapper, clown, magician, athlete,
        player, footballer, runner, swimmer, surfer, skier, snowboarder, skater, skateboarder,
        cyclist, biker, rider, climber, hiker, wrestler, boxer, golfer, gymnast, juggler,
        cheerleader, coach, referee, spectator, police, policeman, policewoman, cop, detective,
        guard, soldier, officer, sailor, pilot, astronaut, firefighter, fireman, driver, passenger,
        pedestrian, tourist, traveller, traveler, customer, shopper, judge, lawyer, politician,
        president, minister, mayor, priest, monk, nun, pope, bishop, businessman, businesswoman,
        manager, boss, secretary, employee, colleague, neighbour, neighbor, vendor, seller, hero,
        heroine, superhero, supervillain, villain, celebrity, santa claus, portrait, selfie,
        self portrait
    """,
    "text": """
        text, sign, street sign, road sign, stop sign, signboard, signpost, poster, billboard,
        banner, placard, label, logo, wordmark, caption, subtitle, headline, title, letter,
        alphabet, word, sentence, paragraph, quote, quotation, lettering, calligraphy, handwriting,
        font, typography, inscription, plaque, document, page, book, notebook, textbook, magazine,
        newspaper, newsletter, brochure, flyer, leaflet, pamphlet, booklet, catalog, catalogue,
        certificate, diploma, invitation, postcard, greeting card, business card, menu, receipt,
        invoice, ticket, envelope, memo, sticky note, diary, manuscript, scroll, screenshot,
        presentation slide, spreadsheet, diagram, chart, infographic, crossword, license plate,
        number plate, barcode, name badge, chalkboard, blackboard, whiteboard, keycap, digit,
        numeral
    """,
    "building": """
        building, house, home, apartment, condo, villa, mansion, cottage, cabin, hut, shed, barn,
        farmhouse, bungalow, igloo, tower, skyscraper, high rise, highrise, castle, palace,
        fortress, fort, ruin, pyramid, church, cathedral, chapel, monastery, abbey, mosque, temple,
        synagogue, shrine, kaaba, pagoda, hotel, motel, inn, resort, hostel, restaurant, cafe,
        coffee shop, pub, bakery, shop, store, market, supermarket, mall, shopping center, shopping
        centre, boutique, pharmacy, bank, post office, office, skyline, cityscape, school,
        university, college, kindergarten, library, museum, gallery, theater, theatre, cinema, opera
        house, concert hall, stadium, arena, hospital, clinic, city hall, town hall, courthouse,
        embassy, parliament, capitol, station, airport terminal, factory, manufacturing plant, power
        plant, warehouse, garage, greenhouse, silo, windmill, lighthouse, refinery, prison, jail,
        dormitory, facade, façade, architecture, statue of liberty, monument
    """,
    "food": """
        food, meal, dish, breakfast, brunch, lunch, dinner, supper, snack, dessert, appetizer,
        buffet, feast, bread, bread roll, spring roll, sushi roll, loaf, toast, bagel, baguette,
        croissant, pretzel, bun, sandwich, burger, hamburger, cheeseburger, hot dog, pizza, pasta,
        spaghetti, noodle, ramen, lasagna, macaroni, rice, sushi, sashimi, dumpling, curry, stew,
        soup, chili, salad, taco, burrito, tortilla, tamale, nachos, quesadilla, falafel, flatbread,
        pita, kebab, steak, beef, pork, bacon, ham, sausage, meat, meatball, roast, barbecue, cut of
        meat, meat on bone, poultry leg, drumstick, fried chicken, fried egg, omelette, omelet, egg,
        cheese, butter, yogurt, milk, cream, ice cream, gelato, sorbet, cake, shortcake, cupcake,
        cheesecake, pie, tart, muffin, brownie, cookie, biscuit, cracker, doughnut, donut, pancake,
        waffle, pudding, custard, chocolate, candy, lollipop, caramel, honey, jam, marmalade, syrup,
        cereal, oatmeal, popcorn, chips, french fries, peanut, nut, almond, walnut, cashew,
        pistachio, chestnut, fruit, apple, pear, peach, apricot, plum, cherry, grape, strawberry,
        raspberry, blueberry, blackberry, cranberry, berry, tangerine, mandarin, lemon, lime,
        grapefruit, banana, pineapple, mango, papaya, kiwi, kiwi fruit, melon, watermelon, coconut,
        fig, pomegranate, avocado, olive, vegetable, potato, sweet potato, tomato, carrot, onion,
        garlic, pepper, bell pepper, hot pepper, cucumber, lettuce, cabbage, broccoli, cauliflower,
        spinach, leafy green, celery, asparagus, eggplant, aubergine, zucchini, courgette, pumpkin,
        squash, corn, ear of corn, pea, pea pod, bean, lentil, tofu, shrimp, fried shrimp, prawn,
        oyster, caviar, seafood, fish and chips, fish cake, sauce, ketchup, mustard, mayonnaise,
        salsa, guacamole, hummus, salt, spice, drink, beverage, coffee, espresso, latte, cappuccino,
        tea, juice, lemonade, soda, smoothie, milkshake, beer, wine, champagne, whiskey, cocktail,
        bento box, oden, dango, mooncake, moon cake, rice cracker, rice ball, fortune cookie, canned
        food, pot of food, fondue, paella, gingerbread, gingerbread man
    """,
    "animal": """
        animal, pet, wildlife, creature, mammal, dog, puppy, hound, poodle, bulldog, labrador,
        terrier, retriever, cat, kitten, horse, pony, foal, donkey, mule, zebra, unicorn, cow, bull,
        ox, calf, cattle, buffalo, bison, sheep, lamb, ram, ewe, goat, pig, piglet, boar, deer,
        stag, reindeer, elk, moose, antelope, gazelle, giraffe, camel, llama, alpaca, elephant,
        mammoth, rhino, rhinoceros, hippo, hippopotamus, lion, lioness, tiger, leopard, cheetah,
        jaguar, panther, lynx, wolf, fox, coyote, hyena, bear, polar bear, panda, koala, kangaroo,
        wallaby, monkey, ape, gorilla, chimpanzee, orangutan, baboon, lemur, sloth, raccoon, skunk,
        badger, otter, beaver, weasel, ferret, mink, mouse, rat, hamster, guinea pig, squirrel,
        chipmunk, rabbit, bunny, hare, hedgehog, porcupine, mole, bat, bird, chicken, hen, rooster,
        chick, baby chick, duck, duckling, goose, swan, turkey, pigeon, dove, crow, raven, magpie,
        sparrow, robin, finch, parrot, parakeet, cockatoo, macaw, eagle, hawk, falcon, vulture, owl,
        penguin, flamingo, pelican, seagull, gull, stork, heron, ostrich, emu, peacock, pheasant,
        quail, hummingbird, woodpecker, kingfisher, toucan, dodo, phoenix, fish, goldfish, tropical
        fish, blowfish, salmon, trout, tuna, cod, carp, shark, whale, orca, dolphin, seal, walrus,
        octopus, squid, jellyfish, starfish, sea urchin, coral, crab, lobster, snail, slug, clam,
        spiral shell, turtle, tortoise, lizard, gecko, iguana, chameleon, crocodile, alligator,
        snake, python, cobra, frog, toad, salamander, newt, dinosaur, t rex, sauropod, dragon,
        insect, bug, bee, honeybee, bumblebee, wasp, ant, butterfly, moth, caterpillar, beetle, lady
        beetle, ladybug, ladybird, housefly, mosquito, dragonfly, grasshopper, cricket, cockroach,
        spider, scorpion, worm, microbe, herd, flock
    """,
    "plant": """
        plant, tree, palm tree, evergreen tree, deciduous tree, pine, oak, maple, birch, willow,
        christmas tree, bonsai, shrub, bush, hedge, ivy, vine, bamboo, cactus, succulent, fern,
        moss, grass, lawn, meadow, herb, clover, shamrock, reed, seaweed, algae, flower, blossom,
        cherry blossom, bouquet, wreath, rose, tulip, lily, daisy, sunflower, orchid, lotus,
        hyacinth, hibiscus, lavender, daffodil, dandelion, poppy, carnation, peony, violet, iris
        flower, marigold, magnolia, petal, wildflower, wheat, sheaf of rice, crop, seedling, sprout,
        sapling, leaf, foliage, forest, woods, jungle, rainforest, orchard, vineyard, mushroom,
        fungus, tree trunk, branch, houseplant, potted plant
    """,
}
"""Object -> nouns that name it."""

HINTS = {
    "person": """
        face, head, hand, finger, fist, thumb, arm, leg, foot, toe, knee, elbow, shoulder, eye, ear,
        nose, mouth, lip, tongue, tooth, hair, beard, moustache, mustache, skin, smile, silhouette,
        gesture, handshake, footprint
    """,
    "text": "card, symbol, stamp, hashtag",
    "building": "city, town, village, street, roof, window, door, balcony, room, kitchen, wall",
    "food": "plate, bowl, cup, table setting",
    "animal": "paw, paw print, tail, feather, nest, fur",
    "plant": "garden, park, field, wood, seed",
}
"""Object -> words associated with it; used only if a text names no object."""

OTHER = """
    teddy bear, stuffed animal, toy, doll, puppet, snowman, action figure, mannequin, scarecrow,
    robot, computer mouse, mouse pad, baseball bat, cricket bat, cricket game, fly fishing, musical
    score, letter opener, bookcase, bookshelf, toothbrush, fishing pole, fishing rod, horse racing,
    dog tag, bird house, handbag, headphone, wine glass, food truck, police car, fire engine, fire
    truck, ambulance, school bus, station wagon, fire extinguisher, paper clip, foot stool,
    headstone, armchair, door knob, pine cone, rose gold, violet heart, egg timer, teapot, coffee
    table, dinner jacket, satellite dish, stock market, passenger ship, police car light, model
    train, chess pawn, kitchen knife, nut and bolt, field hockey, eye shadow
"""
"""Names of things that are none of the six but contain a word that names one."""

IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "feet": "foot", "teeth": "tooth", "leaves": "leaf", "wolves": "wolf", "calves": "calf",
    "loaves": "loaf", "wives": "wife", "oxen": "ox", "cacti": "cactus", "cactuses": "cactus",
    "fungi": "fungus", "gentlemen": "gentleman", "policemen": "policeman", "octopi": "octopus",
    "octopuses": "octopus", "policewomen": "policewoman", "fishermen": "fisherman",
    "firemen": "fireman", "businessmen": "businessman", "businesswomen": "businesswoman",
    "snowmen": "snowman", "potatoes": "potato", "tomatoes": "tomato", "heroes": "hero",
    "superheroes": "superhero", "mangoes": "mango", "buffaloes": "buffalo", "walruses": "walrus",
    "mosquitoes": "mosquito", "cookies": "cookie", "brownies": "brownie", "selfies": "selfie",
    "smoothies": "smoothie", "knives": "knife", "shelves": "shelf",
}  # fmt: skip
"""Irregular plurals -> their singular."""
