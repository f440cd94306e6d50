"""The pattern agent: describes tables and finds odd values. Each ``# %%`` starts a cell of its session."""

# Each cell imports what it needs.
# ruff: noqa: E402

# %% Read every cell

from spreadsheet.inside import patterns, reading, tables

book = reading.read_book("book.xlsx")

# %% Find the tables
found = tables.find_tables(book)
without = patterns.outside_tables(book.sheets, found, book.cells)
for table in found:
    print(f"{table.sheet} {table.area}: {table.rows:,} rows")

# %% Check every column and row
described = []
for table in found[:60]:
    described.append(patterns.describe(table))
    print(f"described {table.sheet} {table.area}")

# %% Show the columns
import pandas as pd

columns = [{"sheet": table["sheet"], **column} for table in described for column in table["columns"]]
pd.DataFrame(columns, columns=["sheet", "name", "kind", "missing", "odd", "outliers"])

# %% Display the findings
from IPython.display import display

findings = {
    "outlier_rule": patterns.OUTLIER_RULE,
    "table_count": len(found),
    "tables": described,
    "sheets_without_table": without[:200],
}
display({"application/json": findings}, raw=True)
