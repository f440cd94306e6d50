"""The formula agent: analyses formulas and finds errors in them. Each ``# %%`` starts a cell of its session."""

# Each cell imports what it needs.
# ruff: noqa: E402

# %% Read every cell

from spreadsheet.inside import chains, formulas, parsing, reading

book = reading.read_book("book.xlsx")

# %% Parse the formulas
parsed = {place: parsing.take_apart(text, place) for place, text in book.formulas().items()}
counts = formulas.count(book, parsed)
print(f"{len(parsed):,} formulas; most used: {counts['functions'][:3]}")

# %% Look for errors and typed-over formulas
overwritten = formulas.typed_over(parsed, book.typed_numbers())
faults = formulas.faults(book, parsed, overwritten)
print(f"{faults['error_count']} errors, {len(overwritten)} numbers typed over formulas")

# %% Follow the references
graph, not_followed = chains.dependency_graph(book, parsed)
cycles = chains.take_out_cycles(graph)
chain = chains.longest_chain(graph)
print(f"the longest chain has {len(chain)} formulas; {len(cycles)} cycles")

# %% Display the findings
from IPython.display import display

findings = counts | faults | formulas.dependencies(chain, cycles, not_followed)
display({"application/json": findings}, raw=True)
