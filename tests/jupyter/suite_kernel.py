"""jupyter_kernel_test on the kernelspec ``sandbox``, with the samples of its own test of ipykernel.

It runs in the environment of Jupyter's programs: ``test_programs.py`` starts it.
"""

from __future__ import annotations

import jupyter_kernel_test


class WelcomeTests(jupyter_kernel_test.IopubWelcomeTests):
    """A client learns when it has joined."""

    kernel_name = "sandbox"
    support_iopub_welcome = True


class CellblockTests(jupyter_kernel_test.KernelTests):
    """What Jupyter asks of a kernel."""

    kernel_name = "sandbox"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    # No code_page_something: in a sandbox, help is an output of the cell, and no payload of its reply.
    code_generate_error = "raise"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    )
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('\\frac{1}{2}'))", "mime": "text/latex"},
    )
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
