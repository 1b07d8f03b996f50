"""What an experiment is called in figures and tables."""

DEMONSTRATION = {"laptop": "laptop scale: demonstrates the pipeline"}
_VARIANTS = {
    "mqar_ablation": "ablations of Palimpsa-D",
    "mqar_authors": "from scratch by the authors' recipe",
    "mqar_authors_1024": "from scratch by the authors' recipe, L 1,024",
    "mqar_authors_long": "from scratch by the authors' recipe, 60 epochs",
    "mqar_authors_very_small": "from scratch by the authors' recipe, very small forgetting",
    "mqar_bf16": "curriculum protocol, all in bf16",
    "mqar_forced": "curriculum protocol, A and d's bias decay by 0.1",
    "mqar_forced_strong": "curriculum protocol, A and d's bias decay by 0.3",
    "mqar_forced_weak": "curriculum protocol, A and d's bias decay by 0.01",
    "mqar_interference": "curriculum protocol with interference",
    "mqar_kept": "curriculum protocol, again",
    "mqar_long": "curriculum protocol with four times the steps at the last length",
    "mqar_scratch_1024": "scratch protocol, L 1,024",
    "recall_further": "trained on, converted and as they were",
    "recall_source": "models before they are converted",
}


_OF_LANGUAGE = {
    "commonsense": "Pretraining of language models",
    "language_source": "Language models before they are converted",
    "language_further": "Language models that are trained on, converted and as they were",
}


def title(task: str) -> str:
    """What a table or figure of this task is called.

    >>> title("mqar_curriculum")
    'MQAR (associative recall), curriculum protocol'
    >>> title("mqar_ablation")
    'MQAR (associative recall), ablations of Palimpsa-D'
    >>> title("commonsense")
    'Pretraining of language models'
    """
    if task in _OF_LANGUAGE:
        return _OF_LANGUAGE[task]
    protocol = f"{task.removeprefix('mqar_')} protocol"
    return f"MQAR (associative recall), {_VARIANTS.get(task, protocol)}"


def subtitle(scale: str) -> str:
    """The scale, and what it may be used for where that is less than it seems."""
    return DEMONSTRATION.get(scale, f"{scale} scale")
