"""How close what a model writes is to what it should have written: metrics of texts, as sums that clients can add up.

Exact match       share of the predictions that are one of their references, blanks at both ends aside
ROUGE-L           mean F of the longest common subsequence of words, the best over the references; `rouge-score`, without a stemmer
BLEU, chrF        of all texts as one corpus; `sacrebleu` with its defaults

Lin: "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop Text Summarization Branches Out, 2004,
https://aclanthology.org/W04-1013. Papineni, Roukos, Ward, Zhu: "BLEU: a Method for Automatic Evaluation of Machine
Translation", ACL 2002, https://aclanthology.org/P02-1040. Popović: "chrF: character n-gram F-score for automatic MT
evaluation", WMT 2015, https://aclanthology.org/W15-3049. Post: "A Call for Clarity in Reporting BLEU Scores", WMT 2018,
https://aclanthology.org/W18-6319.

BLEU and chrF of a corpus are not means over texts, so that clients add counts of n-grams, and the scores are computed once from
their sums. ROUGE's words are runs of a–z and 0–9: it says nothing about texts in other scripts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any

import numpy as np

from lora_a2.errors import ConfigError, DataError
from lora_a2.system.invocation import installer

STATISTICS: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
    "examples": ((1,), np.int64),
    "exact_matches": ((1,), np.int64),
    "rouge_l": ((1,), np.float64),
    "bleu": ((10,), np.int64),
    "chrf": ((18,), np.int64),
}
"""Name → shape and dtype. BLEU's are lengths of predictions and references, then matching and all n-grams for n = 1…4;
chrF's for n = 1…6 the n-grams of prediction, reference and both."""
METRICS = ("exact_match", "rouge_l", "bleu", "chrf")


def text_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """What is added up over examples, and over clients: the arrays of `STATISTICS`; zeros without examples.

    `references[i]` are the right answers to example i, one or more.

    Raises:
        ConfigError: the extra `text` is not installed.
        DataError: an example has no reference, or there are more of one than of the other.
    """
    require_metrics()
    _check_pairs(predictions, references)
    sums = {
        "examples": len(predictions),
        "exact_matches": sum(map(_exact, predictions, references)),
        "rouge_l": sum(map(_rouge(), predictions, references)),
        "bleu": _summed(_bleu(), predictions, references, "bleu"),
        "chrf": _summed(_chrf(), predictions, references, "chrf"),
    }
    return {name: np.asarray(sums[name], dtype).reshape(shape) for name, (shape, dtype) in STATISTICS.items()}


def text_metrics(statistics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of summed statistics, given as arrays or lists: `exact_match` and `rouge_l` as fractions of 1, `bleu` and
    `chrf` from 0 to 100 as in papers.

    Raises:
        ConfigError: the extra `text` is not installed.
        DataError: these are no statistics of texts, or of none.
    """
    require_metrics()
    known = checked_statistics(statistics)
    count = int(known["examples"][0])
    if not count:
        raise DataError("No text was scored: metrics need an example.")
    return {
        "exact_match": int(known["exact_matches"][0]) / count,
        "rouge_l": float(known["rouge_l"][0]) / count,
        "bleu": float(_bleu()._compute_score_from_stats(known["bleu"].tolist()).score),
        "chrf": float(_chrf()._compute_score_from_stats(known["chrf"].tolist()).score),
    }


def checked_statistics(statistics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Statistics as in `STATISTICS`, from arrays or lists that came from elsewhere.

    Raises:
        DataError: a name, a shape or a value is wrong.
    """
    if set(statistics) != set(STATISTICS):
        raise DataError(
            f"Statistics of texts are {', '.join(STATISTICS)}; these are {', '.join(map(repr, statistics))}."
        )
    return {name: _checked(name, statistics[name], shape, dtype) for name, (shape, dtype) in STATISTICS.items()}


def require_metrics() -> None:
    """Refuses to go on without the libraries that score texts.

    Raises:
        ConfigError: one is missing; the message says what to install.
    """
    if any(find_spec(name) is None for name in ("sacrebleu", "rouge_score")):
        raise ConfigError(f"What scores written texts is not installed; run: {installer('text')}")


def _checked(name: str, value: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    try:
        found = np.asarray(value)
        sound = found.shape == shape and found.dtype.kind in "iuf" and bool(np.all(np.isfinite(found) & (found >= 0)))
        whole = sound and (dtype is np.float64 or bool(np.all((found == np.floor(found)) & (found < 2**53))))
    except ValueError:  # lists of unequal lengths
        whole = False
    if not whole:
        kind = "numbers" if dtype is np.float64 else "whole numbers"
        raise DataError(f"Statistics of texts: {name} should be {shape[0]} {kind} from 0 on.")
    return found.astype(dtype)


def _check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise DataError(f"There are {len(predictions)} predictions and references for {len(references)}.")
    for i, known in enumerate(references):
        if isinstance(known, str) or not known:
            raise DataError(f"Example {i + 1} has no list of references to compare with: it needs one or more.")


def _exact(prediction: str, references: Sequence[str]) -> bool:
    return prediction.strip() in {reference.strip() for reference in references}


def _rouge() -> Callable[[str, Sequence[str]], float]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    scorer = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=False))
    return lambda prediction, references: float(scorer.score_multi(references, prediction)["rougeL"].fmeasure)


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)  # no advice on standard error where answers end in " ."


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _summed(metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]], name: str) -> np.ndarray:
    """The counts of sacrebleu for each text, as its tests of significance take them, added up.

    It reads references by columns: the first of every text, the second, …; None where a text has fewer.
    """
    shape, dtype = STATISTICS[name]
    if not predictions:
        return np.zeros(shape, dtype)
    columns = [list(column) for column in zip_longest(*references)]
    counts: np.ndarray = np.asarray(metric._extract_corpus_statistics(list(predictions), columns), dtype)
    return np.asarray(counts.sum(0))
