"""ROUGE."""

from torchmetrics.functional.text.rouge import rouge_score

KEYS = ("rouge1", "rouge2", "rougeL")


def rouge(text: str, reference: str) -> dict[str, float]:
    """F-measures of shared words, of pairs of words, and of the longest common subsequence (Lin 2004).

    Words are runs of a-z and 0-9 after lowering the case, without stemming: as in the `rouge_score` package, whose
    tokenizer it is. ROUGE-Lsum would need nltk's sentence model, which is a download, and is left out.
    """
    scores = rouge_score([text], [[reference]], rouge_keys=KEYS)
    return {key: scores[f"{key}_fmeasure"].item() for key in KEYS}
