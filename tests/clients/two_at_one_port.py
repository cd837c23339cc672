"""Two sessions over TLS that wait at one port, and connections there that are neither's.

Arguments: host, port, CA file, password, path. Prints the final reply code of a listing in each session, which is done
while connections stand that say nothing, garbage, or the TLS of a client that resumes nothing.
"""

import ftplib
import socket
import ssl
import sys

host, port, authority, password, path = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)


def connect():
    ftp = ftplib.FTP_TLS(context=context)
    ftp.connect(host, int(port), timeout=30)
    ftp.login("admin", password)
    ftp.prot_p()
    ftp.voidcmd("TYPE I")
    return ftp, ftp.sock.session


def closed(connection):
    """Has the other end given it up?"""
    connection.settimeout(20)
    try:
        return connection.recv(1) == b""
    except OSError:
        return True


sessions = [connect(), connect()]
address = sessions[0][0].makepasv()
assert sessions[1][0].makepasv() == address
silent = socket.create_connection(address, timeout=30)
garbage = socket.create_connection(address, timeout=30)
garbage.sendall(b"this is no TLS at all, and comes from the same address\r\n")
assert closed(garbage)
half = socket.create_connection(address, timeout=30)
half.sendall(bytes.fromhex("1603010200"))
stranger = socket.create_connection(address, timeout=30)
try:
    context.wrap_socket(stranger, server_hostname=host)
    raise SystemExit("a client that resumes nothing was served")
except OSError:
    pass
codes = []
# The second first: the order in which they came does not decide.
for ftp, session in reversed(sessions):
    connection = socket.create_connection(address, timeout=30)
    assert ftp.sendcmd("NLST " + path).startswith("150")
    connection = context.wrap_socket(connection, server_hostname=host, session=session)
    while connection.recv(65536):
        pass
    connection.close()
    codes.append(ftp.getmultiline()[:3])
print(*codes)
