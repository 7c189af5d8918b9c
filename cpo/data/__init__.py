"""Data: instruction pairs and articles, loaded into one form and tokenised once.

Every loader returns `Example` or `Article` objects and a `LoadReport` that counts and names the
rows left out. Splits depend only on the rows' content: copies of a data set in another file, format
or row order are split alike.
"""

# ruff: noqa: F401 (re-exports)
from .examples import (
    SPLITS,
    Article,
    DataError,
    Example,
    LoadReport,
    TokenizedExample,
    content_hash,
    render_prefix,
)
from .loading import ArticleTask, InstructionTask, load_articles, load_instructions
from .rows import SOURCES, ArticleColumn, PairColumn, Task
from .tokens import encode, pack_articles, tokenize, tokenize_articles, train_tokenizer
