"""A UDP socket that takes packets until its buffer is full and then drops them. Run inside a namespace."""

import socket
import time

from benchmarks.lab import PORT


def main() -> None:
    sink = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sink.bind(("::", PORT))
    print("ready", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
