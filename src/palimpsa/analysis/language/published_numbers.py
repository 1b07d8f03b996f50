"""Zero-shot results that others have reported: printed numbers of papers, not measured here."""

from typing import NamedTuple

PAPER = "arXiv 2602.09075 and its draft"
# That any of these models was trained on.
FEWEST_TOKENS = 15e9


class Published(NamedTuple):
    """What a paper prints of a model.

    label, size, tokens: the model, its parameters and what it was trained on, in words. values: perplexities, and
    accuracies as fractions, by task and metric as the harness names them, or by average. source: the paper.
    """

    label: str
    size: str
    tokens: str
    values: dict[tuple[str, str], float]
    source: str


PUBLISHED = (
    # Each number is the best of the paper's own models.
    Published(
        "Palimpsa, the best at each task",
        "760M",
        "30 billion",
        {
            ("wikitext", "word_perplexity"): 19.02,
            ("lambada_openai", "acc"): 0.4355,
            ("piqa", "acc"): 0.7106,
            ("hellaswag", "acc_norm"): 0.5163,
            ("winogrande", "acc"): 0.5706,
            ("arc_easy", "acc"): 0.6797,
            ("arc_challenge", "acc_norm"): 0.3464,
            ("social_iqa", "acc"): 0.4161,
        },
        PAPER,
    ),
    Published("Palimpsa, the best single model", "760M", "30 billion", {("average_of_7", "acc"): 0.5227}, PAPER),
    Published(
        "Titans LMM",
        "760M",
        "30 billion",
        {("wikitext", "word_perplexity"): 20.04, ("average_of_8", "acc"): 0.5156},
        PAPER,
    ),
    Published(
        "Gated DeltaNet",
        "760M",
        "30 billion",
        {("wikitext", "word_perplexity"): 21.18, ("average_of_8", "acc"): 0.4969},
        PAPER,
    ),
    Published(
        "Mamba-2",
        "760M",
        "30 billion",
        {("wikitext", "word_perplexity"): 22.94, ("average_of_8", "acc"): 0.4834},
        PAPER,
    ),
    Published(
        "Palimpsa, draft",
        "170M",
        "15 billion",
        {("wikitext", "word_perplexity"): 32.16, ("average_of_8", "acc"): 0.4576},
        PAPER,
    ),
    Published(
        "Transformer++, draft",
        "170M",
        "15 billion",
        {("wikitext", "word_perplexity"): 33.46, ("average_of_8", "acc"): 0.4411},
        PAPER,
    ),
    Published(
        "Gated DeltaNet, draft",
        "170M",
        "15 billion",
        {("wikitext", "word_perplexity"): 34.22, ("average_of_8", "acc"): 0.4319},
        PAPER,
    ),
)
