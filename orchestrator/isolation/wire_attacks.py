"""Hostile cells, as text that runs in sandboxes: each uses its kernel's own connections to send invalid messages.

``wire(number)`` returns the raw connection of a channel (1 shell, 2 iopub, 4 control). ``signed`` returns the frames of
a message with a valid signature: the key is in the kernel's own connection file.
"""

from __future__ import annotations

_TOOLS = """
import json, os, socket, struct, time
kernel = get_ipython().kernel
session, parent = kernel.session, kernel.get_parent()
mine = parent["header"]["msg_id"]

def wire(number):
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(name)))
            if str(found.getpeername()).endswith(f"k-{{number}}"):
                found.setblocking(True)
                return found
            found.detach()
        except OSError:
            pass

def frame(body, more=False):
    return bytes([2 | more]) + struct.pack(">Q", len(body)) + body

def signed(kind, content, parent_id=mine, header=None):
    header = header or json.dumps({{"msg_type": kind, "msg_id": "x", "version": "5.3"}}).encode()
    parts = [header, json.dumps({{"msg_id": parent_id}}).encode(), b"{{}}", content]
    frames = [b"t", b"<IDS|MSG>", session.sign(parts), *parts]
    return b"".join(frame(part, number < 6) for number, part in enumerate(frames))

def send(data):
    out, end = wire(2), time.monotonic() + {seconds}
    while time.monotonic() < end: out.sendall(data)

def once(*messages, number=2):
    out = wire(number)
    for message in messages: out.sendall(message)

print("attacking", flush=True)
time.sleep(0.1)
"""

# Each exceeds a limit on a message or a connection: the guard disconnects the kernel.
EXCESS = {
    "an endless message of large frames": "send(frame(bytes(65536), True))",
    "an endless message of empty frames": "send(b'\\1\\0' * 32768)",
    "a frame announced with 2**62 bytes": "once(b'\\2' + struct.pack('>Q', 2**62) + bytes(1000))",
    "a header of 100 MB": "once(frame(b't', True) + frame(b'<IDS|MSG>', True) + frame(bytes(10**8), True))",
}
# Each violates the protocol: the guard disconnects the kernel too.
VIOLATION = {
    "millions of empty messages": "send(b'\\0\\0' * 32768)",
    "unsigned messages": "send(signed('stream', b'{{}}').replace(b'stream', b'strxam') * 50)",
    "unknown flags": "once(b'\\xff' * 1000)",
    "commands": "send(b'\\4\\x0a\\4PING' + bytes(5))",
}
# Each forges the end of its own cell and continues to run.
FORGERY = {
    "a reply and an idle": (
        'once(signed(\'execute_reply\', b\'{{"status": "ok", "execution_count": 1}}\'), number=1)\n'
        "once(signed('status', b'{{\"execution_state\": \"idle\"}}'))\n"
        "time.sleep(0.3)"
    ),
    "a reply that contradicts the true one": (
        "once(signed('execute_reply', b'{{\"status\": \"aborted\"}}'), number=1)\ntime.sleep(0.3)"
    ),
    "two idles": "once(signed('status', b'{{\"execution_state\": \"idle\"}}') * 2)",
}
# Each sends messages that the guard accepts, drops or truncates; the kernel may survive.
BOUNDED = {
    "text that grows in memory": (
        'wide = b\'{{"name": "stdout", "text": "\' + b\'x\' * 900_000 + chr(0x1f600).encode() + b\'"}}\'\n'
        "large = b'{{\"data\": {{\"text/html\": \"' + b'x' * 4_000_000 + b'\"}}}}'\n"
        "send(signed('stream', wide) + signed('display_data', large))"
    ),
    "tiny messages of this cell": 'send(signed(\'stream\', b\'{{"name": "stdout", "text": "x"}}\') * 100)',
    "messages without a request": 'send(signed(\'stream\', b\'{{"name": "stdout", "text": "x"}}\', \'none\') * 100)',
    "a slow drip": (
        "out, size, end = wire(2), 1 << 20, time.monotonic() + {seconds}\n"
        "out.sendall(b'\\2' + struct.pack('>Q', size))\n"
        "while time.monotonic() < end: size -= out.send(b'x'); time.sleep(0.001)\n"
        "out.sendall(bytes(size))"
    ),
    "deep, wide and endless JSON": (
        "bodies = [b'[' * 10**5, b'{{\"a\":' * 10**5,\n"
        "  b'{{\"data\": {{\"application/json\": [' + b'[],' * 4900 + b'1]}}}}',\n"
        "  b'{{\"data\": {{\"application/json\": [' + b'{{\"a\": {{}}}},' * 2700 + b'1]}}}}',\n"
        "  b'{{\"data\": {{\"application/json\": [' + b'1' * 4000 + b',' + b'1' * 10**6 + b', NaN, 1e999]}}}}',\n"
        "  b'{{\"data\": {{\"text/plain\": \"' + b'\\\\ud83d' * 10**5 + b'\"}}}}',\n"
        '  b\'{{"ename": "x", "evalue": "", "traceback": [\' + b\'"x",\' * 29000 + b\'"x"]}}\']\n'
        "kinds = ['display_data'] * 6 + ['error']\n"
        "send(b''.join(signed(kind, body) for kind, body in zip(kinds, bodies)))"
    ),
    "displays without end": (
        'one = b\'{{"data": {{"text/plain": "x"}}, "transient": {{"display_id": "%d"}}}}\'\n'
        "send(b''.join(signed('display_data', one % n) + signed('update_display_data', one % n) for n in range(500)))"
    ),
    "both streams in turn": (
        'one = b\'{{"name": "%s", "text": "x"}}\'\n'
        "send((signed('stream', one % b'stdout') + signed('stream', one % b'stderr')) * 100)"
    ),
}
# Each is output that a cell may well make, of a kind that is expensive to keep, name or show.
EXPENSIVE = {
    "large displays with long ids": (
        "for n in range(18):\n    display({{'text/html': 'x' * 2_000_000}}, raw=True, display_id='%0255d' % n)"
    ),
    "29,900 mime types in a bundle": (
        "data = {{f'a/{{n:05d}}': '' for n in range(29900)}}\n"
        "send(signed('display_data', json.dumps({{'data': data, 'metadata': data}}).encode()))"
    ),
    "displays with long ids": (
        "end, out = time.monotonic() + {seconds}, wire(2)\n"
        'one = b\'{{"data": {{"text/plain": "x"}}, "transient": {{"display_id": "%0255d"}}}}\'\n'
        "kinds, n = ('display_data', 'update_display_data'), 0\n"
        "while time.monotonic() < end:\n"
        "    n += 1\n"
        "    out.sendall(b''.join(signed(kinds[n % 2], one % (200 * n + k)) for k in range(200)))"
    ),
    "a large update of many displays": (
        "named = {{'data': {{'text/plain': 'x'}}, 'transient': {{'display_id': 'd'}}}}\n"
        "once(*[signed('display_data', json.dumps(named).encode())] * 200)\n"
        "named['data']['application/json'] = list(range(4000)) * 3 + ['x' * 3000] * 300\n"
        "send(signed('update_display_data', json.dumps(named).encode()))"
    ),
    "codes in tracebacks": (
        "lines = ['\\x1b[0m' * 90_000] * 5\n"
        "content = {{'ename': 'x', 'evalue': '', 'traceback': lines}}\n"
        "send(signed('error', json.dumps(content).encode()))"
    ),
}
# Each puts out 40 MB, and clears or replaces it.
ENDLESS = {
    "cleared text": (
        "one = json.dumps({{'name': 'stdout', 'text': 'x' * 100_000}}).encode()\n"
        "pair = signed('stream', one) + signed('clear_output', b'{{\"wait\": true}}')\n"
        "once(*[pair] * 400)"
    ),
    "replaced displays": (
        "named = {{'data': {{'text/plain': 'x' * 100_000}}, 'transient': {{'display_id': 'd'}}}}\n"
        "shown = json.dumps(named).encode()\n"
        "once(signed('display_data', shown), *[signed('update_display_data', shown)] * 400)"
    ),
}
# What a kernel says of its own failures reaches messages and log lines of the host.
LYING_HANDLERS = """
kernel = get_ipython().kernel
def answer(kind):
    def handle(stream, ident, parent):
        kernel.session.send(stream, kind, {"status": "error", "reason": "a\\nb\\x1b[0m\\u202e"}, parent, ident=ident)
    return handle
kernel.shell_handlers["state_save_request"] = answer("state_save_reply")
kernel.control_handlers["state_take_request"] = lambda stream, ident, parent: kernel.session.send(
    stream, "state_take_reply", {"last": True}, parent, ident=ident)
kernel.control_handlers["file_read_request"] = answer("file_read_reply")
"""


# Each replaces the kernel's handler of commands. ``send`` sends a message about the command.
_LIE = """
import threading, time
kernel = get_ipython().kernel
def lie(stream, ident, parent):
    def send(kind, content, *buffers):
        kernel.session.send(stream, kind, content, parent, ident=ident, buffers=list(buffers))
    ATTACK
kernel.control_handlers["command_start_request"] = lie
"""
_LIES = {
    "endless output": """
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        send("command_output", {{"stream": "stdout"}}, bytes(400000))""",
    "empty output": """
    end = time.monotonic() + {seconds}
    while time.monotonic() < end:
        send("command_output", {{"stream": "stdout"}}, b"")""",
    "two ends": """
    send("command_end", {{"exit_code": 0}})
    send("command_end", {{"exit_code": 1}})""",
    "nonsense": """
    for content in ({{}}, {{"status": "ok", "pid": "x"}}, {{"status": 7, "errno": [], "reason": {{}}}}):
        send("command_output", {{"stream": "stdnone"}}, b"x")
        send("command_output", {{"stream": ["stdout"]}}, b"x")
        send("command_taken", content)
    send("command_start_reply", {{"status": "ok", "pid": 2 ** 70}})
    time.sleep(0.1)""",
    "silence": """
    pass""",
}
LYING_COMMANDS = {name: _LIE.replace("    ATTACK", lie.strip("\n")) for name, lie in _LIES.items()}


def cell(attack: str, seconds: float) -> str:
    """Return the code of a cell that attacks for ``seconds``."""
    return (_TOOLS + attack).format(seconds=seconds)
