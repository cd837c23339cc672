"""A directory of the accounts `good`, `locked` and `slow`: PORT LOG CODE TEXT. LDAPv3 in BER, as much as a login needs.

The bind of `locked` is answered by CODE and TEXT, that of `slow` with 49 after 0.6 s; each bind but the service account's is a
line in the file LOG.
"""
import socket
import sys
import threading
import time

port, log, code, text = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()


def tlv(tag, body):
    n = len(body)
    raw = n.to_bytes((n.bit_length() + 7) // 8 or 1, "big")
    return bytes([tag]) + (bytes([n]) if n < 128 else bytes([128 + len(raw)]) + raw) + body


def integer(value):
    return tlv(2, value.to_bytes(max(1, (value.bit_length() + 8) // 8), "big"))


def parse(data, at=0):
    tag, n = data[at], data[at + 1]
    at += 2
    if n & 128:
        size = n & 127
        n = int.from_bytes(data[at : at + size], "big")
        at += size
    return tag, data[at : at + n], at + n


def result(tag, number, rc=0, message=b""):
    body = tlv(10, bytes([rc])) + tlv(4, b"") + tlv(4, message)
    return tlv(0x30, integer(number) + tlv(tag, body))


def answer_bind(number, body):
    _, _, at = parse(body)
    _, name, at = parse(body, at)
    _, word, _ = parse(body, at)
    if name.startswith(b"cn=portolan"):
        return result(0x61, number)
    with open(log, "ab") as file:
        file.write(name + b"\n")
    if name.startswith(b"uid=locked"):
        return result(0x61, number, code, text)
    if name.startswith(b"uid=slow"):
        time.sleep(0.6)
    right = name.startswith(b"uid=good") and word == b"good-password"
    return result(0x61, number, 0 if right else 49)


def serve(conn):
    buffer = b""
    while more := conn.recv(65536):
        buffer += more
        while len(buffer) > 2:
            try:
                _, message, end = parse(buffer)
            except IndexError:
                break
            if end > len(buffer):
                break
            buffer = buffer[end:]
            _, raw, at = parse(message)
            number = int.from_bytes(raw, "big")
            op, body, _ = parse(message, at)
            if op == 0x60:
                conn.sendall(answer_bind(number, body))
            elif op == 0x63:
                for who in (b"good", b"locked", b"slow"):
                    if b"member" not in body and tlv(4, who) in body:
                        dn = b"uid=" + who + b",ou=people,dc=example,dc=org"
                        attributes = tlv(0x30, tlv(0x30, tlv(4, b"uid") + tlv(0x31, tlv(4, who))))
                        conn.sendall(tlv(0x30, integer(number) + tlv(0x64, tlv(4, dn) + attributes)))
                conn.sendall(result(0x65, number))
            elif op == 0x42:
                return


listener = socket.create_server(("127.0.0.1", port))
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
