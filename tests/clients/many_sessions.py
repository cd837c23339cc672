"""Many sessions over TLS that wait at passive ports at the same time.

Arguments: host, port, CA file, password, TLS (1.2, 1.2-without-tickets, 1.3), count, path. Opens so many sessions, each
with a data connection of its own asked for, before any is opened. Session N uploads PATH/N, and downloads it, in an order
that is not that of the ports. Prints the number of distinct ports; fails when any content is another's.
"""

import ftplib
import random
import socket
import ssl
import sys

host, port, authority, password, version, count, path = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
exact = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
context.minimum_version = context.maximum_version = exact
if version == "1.2-without-tickets":
    context.options |= ssl.OP_NO_TICKET


def connect():
    ftp = ftplib.FTP_TLS(context=context)
    ftp.connect(host, int(port), timeout=30)
    ftp.login("admin", password)
    ftp.prot_p()
    ftp.voidcmd("TYPE I")
    # The tickets of TLS 1.3 have been read by now.
    return ftp, ftp.sock.session


def protect(connection, session):
    connection = context.wrap_socket(connection, server_hostname=host, session=session)
    assert connection.session_reused
    return connection


sessions = [connect() for _ in range(int(count))]
ports = set()
for command in ["STOR", "RETR"]:
    addresses = [ftp.makepasv() for ftp, _ in sessions]
    ports.update(address[1] for address in addresses)
    order = list(range(len(sessions)))
    random.Random(7).shuffle(order)
    # All are connected before the first of them has said whose it is.
    connections = {number: socket.create_connection(addresses[number], timeout=30) for number in order}
    random.Random(8).shuffle(order)
    for number in order:
        ftp, session = sessions[number]
        own = f"content of session {number}\n".encode() * 100
        assert ftp.sendcmd(f"{command} {path}/{number}").startswith("150")
        connection = protect(connections[number], session)
        if command == "STOR":
            connection.sendall(own)
            connection.unwrap()
        else:
            got = b""
            while chunk := connection.recv(65536):
                got += chunk
            assert got == own, f"session {number} got {got[:40]!r}"
        connection.close()
        assert ftp.voidresp().startswith("226")
print(len(ports))
