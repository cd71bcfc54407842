"""Settings of the data room. Imports nothing heavy."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which programs are learned from, and how they become rows of tokens."""

    corpus: str = "puzzles"
    """"puzzles" (generated), "stdlib" (of the running Python), "hf:ID" (HF dataset, streamed), or
    a path (may be gs://): .py, .jsonl, .jsonl.gz, .parquet, or a directory with such files."""
    unit: Literal["function", "file"] = "function"
    """What one example is. function: signature and docstring are the prompt, the body is the code.
    file: all is code."""
    text_column: str = "content"
    """Column of jsonl, parquet and HF corpora that holds the source text ("content" in
    bigcode/the-stack and codeparrot/codeparrot-clean, "code" in codeparrot/github-code)."""
    prompt_column: str | None = None
    """Column with the Python text that stands before the code (needs unit=file); None: none."""
    hf_split: str = "train"
    """Split of the HF dataset."""
    hf_name: str | None = None
    """Configuration name of the HF dataset."""
    hf_data_dir: str | None = None
    """Directory inside the HF dataset ("data/python" in bigcode/the-stack)."""
    hf_revision: str | None = None
    """Branch, tag or commit of the HF dataset; the commit that it stands for is recorded."""
    max_documents: int | None = None
    """Reading stops after this many examples (documents); None: all. Python files come in an order
    hashed from their paths, so a beginning is a sample."""
    min_lines: int = 1
    """Examples with less code are skipped (logical lines)."""
    max_lines: int | None = None
    """Examples with more code are skipped (logical lines); None: no limit."""
    max_line_bytes: int = 1000
    """Examples with a longer physical line are skipped: generated or minified (bytes)."""
    max_file_bytes: int = 1_000_000
    """Larger files and rows are skipped (bytes)."""
    comments: Literal["strip", "keep", "observe"] = "strip"
    """Full-line comments of the corpus: dropped, left in the code, or taken as observed latents."""
    dedup: bool = True
    """Keep one of the examples whose tokens are the same but for comments and layout."""
    near_dedup: float | None = None
    """Also drop examples that resemble a kept one: least Jaccard similarity of 5-token shingles
    (estimated by MinHash; 0..1, usual: 0.7). None: off."""
    decontaminate: bool = True
    """Drop examples that overlap with the evaluation benchmarks, where the caller has those."""
    held_out: float = 0.05
    """Share of the examples, chosen by content, that is never trained on (0..1)."""
    sequence_length: int = 512
    """Length of a packed row (tokens). Longer traces are dropped and counted."""

    def __post_init__(self):
        if self.prompt_column is not None and self.unit == "function":
            raise ValueError(f"prompt_column={self.prompt_column!r} needs unit='file', found unit='function'")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out={self.held_out}: must be in [0, 1)")
        if self.near_dedup is not None and not 0.0 < self.near_dedup <= 1.0:
            raise ValueError(f"near_dedup={self.near_dedup}: must be in (0, 1]")
        if self.max_lines is not None and self.max_lines < self.min_lines:
            raise ValueError(f"max_lines={self.max_lines} is less than min_lines={self.min_lines}")
        sizes = {
            "max_documents": self.max_documents,
            "min_lines": self.min_lines,
            "max_line_bytes": self.max_line_bytes,
            "max_file_bytes": self.max_file_bytes,
            "sequence_length": self.sequence_length,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
