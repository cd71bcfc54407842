"""From a configured corpus to the documents to train on: read, deduplicate, decontaminate."""

import itertools

from ra3_jax.data.config import DataConfig
from ra3_jax.data.decontamination import BenchmarkIndex, decontaminate
from ra3_jax.data.dedup import drop_duplicates, drop_near_duplicates
from ra3_jax.data.sources import Document, SkipReport, documents


def load_corpus(config: DataConfig, benchmarks: BenchmarkIndex | None = None) -> tuple[list[Document], SkipReport]:
    """The documents of `config.corpus` after all filters, and what was left out.

    `benchmarks`: None where the caller has no benchmark data; the report then says that nothing was
    decontaminated. Raises ValueError with the counts where no document is left.
    """
    report = SkipReport()
    stream = documents(config, report)
    if config.dedup:
        stream = drop_duplicates(stream, report)
    if config.near_dedup is not None:
        stream = drop_near_duplicates(stream, report, config.near_dedup)
    if config.decontaminate and benchmarks is not None:
        stream = decontaminate(stream, benchmarks, report)
        names = ", ".join(f"{name} ({n} items)" for name, n in benchmarks.counts.items())
        report.notes.append(f"decontaminated against {names}")
    else:
        why = "no benchmark data" if config.decontaminate else "switched off"
        report.notes.append(f"not decontaminated: {why}")
    kept = list(itertools.islice(stream, config.max_documents))
    report.kept = len(kept)
    if not kept:
        raise ValueError(f"the corpus is empty\n{report}")
    return kept, report
