"""The picture agent: draws the workbook in five pictures. Each ``# %%`` starts a cell of its session."""

# Each cell imports what it needs.
# ruff: noqa: E402

# %% Read every cell

from spreadsheet.inside import reading, tables

book = reading.read_book("book.xlsx")

# %% Find what to draw
from collections import Counter

from spreadsheet.inside import parsing

found = tables.find_tables(book)
calls = Counter(
    name for place, text in book.formulas().items() for name in parsing.take_apart(text, place).functions
).most_common(15)
print(f"{len(found)} tables, {len(calls)} functions")

# %% Draw the sheets
from IPython.display import Image, display
from matplotlib.figure import Figure

from spreadsheet.inside import pictures

saved: list[dict[str, str]] = []


def save(figure: Figure, name: str, title: str) -> None:
    """Save the picture for the host, and show it in the notebook."""
    figure.savefig(name, dpi=110)
    display(Image(filename=name))
    saved.append({"file": name, "title": title})
    print(f"drew {name}")


save(pictures.composition(book), "composition.png", "Formulas and kinds of cells per sheet")
save(pictures.sheet_maps(book), "sheets.png", "The sheets from above")

# %% Draw the formulas
save(pictures.functions(calls), "functions.png", "The functions that formulas call")

# %% Draw the numbers
save(pictures.histograms(found), "histograms.png", "Distribution of the numbers in the main columns")

# %% Draw the gaps
save(pictures.missing_values(found), "missing.png", "Missing values of the largest tables")

# %% Display the findings
display({"application/json": {"pictures": saved}}, raw=True)
