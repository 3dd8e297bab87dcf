"""consomme: curate image-text data, train vision-language models, soup what comes out."""

__version__ = "0.1.0"
