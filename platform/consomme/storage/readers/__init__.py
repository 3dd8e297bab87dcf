"""Input formats: WebDataset tars, Parquet, JSON lines, LLaVA conversation JSON.

Each format locates its rows without reading pixels (`plan`) and parses the rows of one range
(`rows`). A problem with one row is a `RowError`, which becomes one reject; only a shard that is not
readable at all is a `DataError`.
"""
