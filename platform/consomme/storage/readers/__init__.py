"""Input formats: WebDataset tars, Parquet, JSON lines, LLaVA conversation JSON.

Each format says where its rows are without reading pixels (`plan`) and parses the rows of one range
(`rows`). What is wrong with one row is a `RowError`, which becomes one reject; only a shard that
cannot be read at all is an error.
"""
