"""Many sessions over TLS whose transfers are all under way at once, through few passive ports.

Arguments: host, port, CA file, password, TLS (1.2, 1.2-without-tickets, 1.3), count, path, memory. Session N uploads PATH/N,
and downloads it; no content is sent before every session has its data connection. With the memory `own` each session resumes
its own TLS session, with `common` any that one of them has left, as programs do that have one memory for all connections.
Prints the number of distinct ports; fails when any content is another's.
"""

import ftplib
import random
import socket
import ssl
import sys
import threading

host, port, authority, password, version, count, path, memory = sys.argv[1:]
count = int(count)
context = ssl.create_default_context(cafile=authority)
exact = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
context.minimum_version = context.maximum_version = exact
if version == "1.2-without-tickets":
    context.options |= ssl.OP_NO_TICKET
ports, failures, kept = set(), [], []
all_under_way = threading.Barrier(count, timeout=60)


def connect():
    ftp = ftplib.FTP_TLS(context=context)
    ftp.connect(host, int(port), timeout=60)
    ftp.login("admin", password)
    ftp.prot_p()
    ftp.voidcmd("TYPE I")
    # The tickets of TLS 1.3 have been read by now.
    kept.append(ftp.sock.session)
    return ftp


def work(number, ftp):
    own = f"content of session {number}\n".encode() * 100
    for command in ["STOR", "RETR"]:
        address = ftp.makepasv()
        ports.add(address[1])
        connection = socket.create_connection(address, timeout=60)
        assert ftp.sendcmd(f"{command} {path}/{number}").startswith("150")
        session = random.choice(kept) if memory == "common" else ftp.sock.session
        connection = context.wrap_socket(connection, server_hostname=host, session=session)
        assert connection.session_reused
        all_under_way.wait()
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


def guarded(number, ftp):
    try:
        work(number, ftp)
    except BaseException as failure:
        failures.append(f"session {number}: {failure!r}")
        all_under_way.abort()


sessions = [connect() for _ in range(count)]
threads = [threading.Thread(target=guarded, args=each) for each in enumerate(sessions)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failures:
    raise SystemExit("\n".join(failures))
print(len(ports))
