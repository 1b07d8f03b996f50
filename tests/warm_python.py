"""Stands for Python on a command line: a script is run by a process of tests/forker.py, which has imported libraries.

python tests/warm_python.py SOCKET SCRIPT ARGUMENT...
"""

import json
import os
import socket
import sys


def main(address: str, *words: str) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        order = {"words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
        text = f"{json.dumps(order)}\n".encode()
        sent = socket.send_fds(connection, [text], [0, 1, 2])
        connection.sendall(text[sent:])
        code = int(connection.makefile().readline())
    # As a shell has it of what a signal ends.
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
