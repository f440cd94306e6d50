"""Writes the example's workbook: the accounts of a small shop, with planted faults for the agents to find.

    python examples/spreadsheet/make_workbook.py shop.xlsx

Every run writes the same bytes. openpyxl saves formulas without results, so the error values are typed.
"""

from __future__ import annotations

import io
import random
import re
import sys
import zipfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

from openpyxl import Workbook
from openpyxl.worksheet.worksheet import Worksheet

Kind = Literal[
    "typed over",  # a number where a run of formulas has a formula
    "error value",
    "lost reference",  # a formula with #REF!
    "cycle",
    "missing",
    "odd type",  # a text in a column of numbers
    "outlier",
    "repeated row",
    "repeated key",
]


@dataclass(frozen=True)
class Fault:
    """One planted fault, and the cell for which an agent must report it."""

    kind: Kind
    cell: str


FAULTS = (
    Fault("typed over", "Orders!H58"),
    Fault("typed over", "Costs!F9"),
    Fault("error value", "Costs!C7"),
    Fault("error value", "Orders!F120"),
    Fault("lost reference", "Summary!B7"),
    Fault("cycle", "Loan!B4"),
    Fault("cycle", "Loan!B5"),
    Fault("missing", "Orders!C33"),
    Fault("missing", "Orders!G71"),
    Fault("missing", "Orders!G72"),
    Fault("missing", "Orders!G140"),
    Fault("odd type", "Orders!E45"),
    Fault("odd type", "Orders!E99"),
    Fault("odd type", "Orders!F120"),
    Fault("outlier", "Orders!F88"),
    Fault("outlier", "Orders!E200"),
    Fault("repeated row", "Orders!A151"),
    Fault("repeated row", "Orders!A222"),
    Fault("repeated key", "Orders!A151"),
    Fault("repeated key", "Orders!A180"),
    Fault("repeated key", "Orders!A222"),
)

ORDERS = range(4, 244)  # rows
MONTHS = range(4, 64)  # rows: five years

# The first month's growth, each month's cash, and Summary!B4, B5 and B6: each reads the one before.
CHAIN_LENGTH = 1 + len(MONTHS) + 3
CHAIN_START, CHAIN_END = "Forecast!B4", "Summary!B6"

FORMULAS = {"Read me": 0, "Orders": len(ORDERS) - 1, "Costs": 11, "Loan": 3, "Forecast": 2 * len(MONTHS), "Summary": 4}

_CREATED = "2024-01-01T00:00:00Z"


def write(path: Path) -> Path:
    """Write the workbook to ``path``, and return the path."""
    book = Workbook()
    book.remove(book.worksheets[0])
    for name, fill in (
        ("Read me", fill_read_me),
        ("Orders", fill_orders),
        ("Costs", fill_costs),
        ("Loan", fill_loan),
        ("Forecast", fill_forecast),
        ("Summary", fill_summary),
    ):
        fill(book.create_sheet(name))
    saved = io.BytesIO()
    book.save(saved)
    path.write_bytes(without_clock(saved))
    return path


def fill_read_me(sheet: Worksheet) -> None:
    sheet["A1"] = "The accounts of an imaginary shop"
    sheet["A2"] = "Faults are planted in it: an analysis that finds none of them is not to be trusted."


def fill_orders(sheet: Worksheet) -> None:
    """A table of 240 orders with most of the faults."""
    chance = random.Random(7)  # noqa: S311 - sample data, the same at every run
    sheet["A1"] = "Orders"
    sheet.append([])
    sheet.append(["Order", "Date", "Customer", "Region", "Quantity", "Unit\nprice", "Discount", "Amount"])
    customers = ("Ahmed & Sons", "[bold]Müller[/bold]", "Nakamura", "O'Brien", "Silva", "Žižek")
    for row in ORDERS:
        day = date(2023, 1, 1) + timedelta(days=row)
        price, discount = round(chance.uniform(5, 40), 2), chance.choice((0, 0.05, 0.1))
        numbers = [chance.randint(1, 20), price, discount, f"=E{row}*F{row}*(1-G{row})"]
        sheet.append([f"SO-{row:04}", day, chance.choice(customers), chance.choice(("North", "South")), *numbers])
    plant_in_orders(sheet)


def plant_in_orders(sheet: Worksheet) -> None:
    sheet["H58"] = 99.5
    sheet["F120"] = "#N/A"
    for cell in ("C33", "G71", "G72", "G140"):
        sheet[cell] = None
    sheet["E45"], sheet["E99"] = "12 pcs", "a dozen"
    sheet["F88"], sheet["E200"] = 4250.0, 900
    sheet["A180"] = sheet["A20"].value
    for row, original in ((151, 150), (222, 60)):
        for column in range(1, 8):
            sheet.cell(row, column).value = sheet.cell(original, column).value


def fill_costs(sheet: Worksheet) -> None:
    """Fill a small table with a sum for each row."""
    chance = random.Random(11)  # noqa: S311 - sample data, the same at every run
    sheet["A1"] = "Costs per month"
    sheet.append([])
    sheet.append(["Month", "Rent", "Wages", "Power", "Other", "Total"])
    names = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    for row, name in enumerate(names, start=4):
        wages, power, other = chance.randint(8000, 9000), chance.randint(300, 500), chance.randint(100, 900)
        sheet.append([name, 2400, wages, power, other, f"=SUM(B{row}:E{row})"])
    sheet["C7"] = "#DIV/0!"
    sheet["F9"] = 11000


def fill_loan(sheet: Worksheet) -> None:
    """Fill a loan whose interest depends on the amount owed, which includes the interest: a cycle."""
    for line in (
        ["Loan", None],
        ["Borrowed", 50000],
        ["Rate", 0.04],
        ["Interest", "=B5*B3"],
        ["Owed", "=B2+B4"],
        ["Part of a year's rent", "=B2/SUM(Costs!B4:B15)"],
    ):
        sheet.append(line)


def fill_forecast(sheet: Worksheet) -> None:
    """Fill a forecast in which each month's cash depends on the month before."""
    sheet["A1"] = "Forecast"
    sheet["E1"] = 0.01
    sheet.append([])
    sheet.append(["Month", "Growth", "Cash"])
    for row in MONTHS:
        before = "Loan!B2" if row == MONTHS[0] else f"C{row - 1}"
        sheet.append([row - MONTHS[0] + 1, "=$E$1", f"={before}*(1+B{row})"])


def fill_summary(sheet: Worksheet) -> None:
    for line in (
        ["Summary", None],
        [],
        ["What", "Value"],
        ["Cash after five years", f"=ROUND(Forecast!C{MONTHS[-1]},2)"],
        ["Best month so far", f"=MAX(B4,SUM(Forecast!C{MONTHS[0]}:C{MONTHS[-1]}))"],
        ["Verdict", '=IF(B5>100000,"carry on","borrow more")'],
        ["Against last year", "=B4-#REF!"],
    ):
        sheet.append(line)


def without_clock(saved: io.BytesIO) -> bytes:
    """Return the saved workbook without the time of writing, which openpyxl stores in the archive and in a property."""
    rewritten = io.BytesIO()
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(rewritten, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "docProps/core.xml":
                content = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", _CREATED.encode(), content)
            copy.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return rewritten.getvalue()


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
