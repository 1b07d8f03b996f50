"""What an experiment is called in figures and tables."""

DEMONSTRATION = {"laptop": "laptop scale: demonstrates the pipeline"}
_VARIANTS = {
    "mqar_ablation": "ablations of Palimpsa-D",
    "mqar_long": "curriculum protocol with four times the steps at the last length",
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
    if task == "commonsense":
        return "Pretraining of language models"
    protocol = f"{task.removeprefix('mqar_')} protocol"
    return f"MQAR (associative recall), {_VARIANTS.get(task, protocol)}"


def subtitle(scale: str) -> str:
    """The scale, and what it may be used for where that is less than it seems."""
    return DEMONSTRATION.get(scale, f"{scale} scale")
