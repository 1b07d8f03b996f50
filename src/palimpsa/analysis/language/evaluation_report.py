"""Pictures and tables of a folder's evaluation.csv: in the terminal, as Markdown, as PNG."""

from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from palimpsa.analysis.collect.evaluation_files import read_evaluation_csv
from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.draw.long_range import long_range_figure
from palimpsa.analysis.draw.zero_shot import zero_shot_figure
from palimpsa.analysis.language.evaluation_tables import PANELS, TASKS, caption, subtitle, table_cells, to_markdown
from palimpsa.config.process import plain_console
from palimpsa.runs.files import write_all_atomic

TITLE = "Zero-shot tasks"


def build_evaluation(folder: Path) -> list[Path]:
    """Draws the figures and writes the table of a folder's evaluation.csv: none where there is none.

    Args:
        folder: of evaluation.csv, where figures and the table go too.

    Returns:
        the paths written.

    Raises:
        ResultError, OSError: see `read_evaluation_csv`.
    """
    rows = read_evaluation_csv(folder)
    if rows.empty:
        return []
    note = f"{subtitle(rows)}; bars: one standard error"
    paths = []
    measures = set(rows["measure"])
    if measures & set(TASKS):
        paths.append(save_figure(zero_shot_figure(rows, title=TITLE, subtitle=note), folder / "zero_shot")[0])
    if measures & set(PANELS):
        figure = long_range_figure(rows, title="Long-range measures", subtitle=note)
        paths.append(save_figure(figure, folder / "long_range")[0])
    text = "\n".join([f"# {TITLE}", "", to_markdown(rows), ""])
    return [*paths, *write_all_atomic({folder / "evaluation.md": text})]


def print_evaluation(folder: Path, name: str) -> None:
    """Prints the table of tasks of the model of a name, beside what is published."""
    rows = read_evaluation_csv(folder)
    rows = rows.loc[rows["name"] == name]
    header, cells = table_cells(rows)
    console = plain_console()
    table = Table(box=box.SIMPLE, title=Text(TITLE))
    # A column a model: more numbers than a terminal is wide.
    for i, text in enumerate(["", *(row[0] for row in cells if _is_shown(row))]):
        table.add_column(Text(text), justify="left" if i == 0 else "right")
    for i, text in enumerate(header[1:], start=1):
        table.add_row(*(Text(cell) for cell in [text, *(row[i] for row in cells if _is_shown(row))]))
    console.print(table)
    console.print(caption(rows), soft_wrap=True)


def _is_shown(row: list[str]) -> bool:
    """In a terminal: what is measured, and the published row that has tasks of their own."""
    return not row[0].startswith("published") or row.count("-") < len(row) // 2
