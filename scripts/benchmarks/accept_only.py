"""The loop to compare with: netfilterqueue as its README shows it, accepting all.

Arguments: the queue and its length in packets.
"""

import sys

from netfilterqueue import NetfilterQueue


def main() -> None:
    queue = NetfilterQueue()
    queue.bind(int(sys.argv[1]), lambda packet: packet.accept(), max_len=int(sys.argv[2]), sock_len=32 << 20)
    print("ready", flush=True)
    queue.run()


if __name__ == "__main__":
    main()
