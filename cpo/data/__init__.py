"""Data: instruction pairs and articles, loaded to one shape, and turned into token ids once.

Every loader ends in `Example` or `Article`, with a `LoadReport` that counts and names each row left
out. Splits are ordered by the content of the rows, so that copies of a data set in another file,
format or row order are split alike.
"""

# ruff: noqa: F401 (imported here to be imported from here)
from .examples import (
    Article,
    DataError,
    Example,
    LoadReport,
    TokenizedExample,
    content_hash,
    render_prefix,
)
from .loading import ArticleTask, InstructionTask, load_articles, load_instructions
from .rows import SOURCES, SPLITS, ArticleColumn, PairColumn, Task
from .tokens import encode, pack_articles, tokenize, tokenize_articles, train_tokenizer
