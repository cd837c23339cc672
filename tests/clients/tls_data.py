"""Data connections with TLS that most clients would not open.

Arguments: host, port, CA file, password, TLS (1.2, 1.2-without-tickets, 1.3), actions. Logs in as admin over
explicit TLS, does the actions in that one session, and prints the final reply code of each.

list:SESSION                 resumed: the TLS session of the control connection; fresh: none;
                             foreign: that of another admin's control connection
list:garbage                 no TLS at all on the data connection
store:PATH:CONTENT:END       END is ended (with close_notify) or cut (without)
noop
"""

import ftplib
import socket
import ssl
import sys

host, port, authority, password, version, *actions = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
exact = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
context.minimum_version = context.maximum_version = exact
if version == "1.2-without-tickets":
    context.options |= ssl.OP_NO_TICKET


def connect(admin):
    ftp = ftplib.FTP_TLS(context=context)
    ftp.connect(host, int(port), timeout=20)
    ftp.login(admin, password)
    ftp.voidcmd("TYPE I")
    ftp.prot_p()
    return ftp


def plain_data(command):
    """The data connection of a command before TLS; the reply 150 has been read."""
    connection = socket.create_connection(ftp.makepasv(), timeout=20)
    reply = ftp.sendcmd(command)
    assert reply.startswith("150"), reply
    return connection


def code():
    """A refusal is what is tested; ftplib would raise it."""
    return ftp.getmultiline()[:3]


def list_(session):
    connection = plain_data("LIST /domains")
    if session == "garbage":
        connection.sendall(b"this is no handshake\r\n")
    else:
        sessions = {"resumed": ftp.sock.session, "foreign": other.sock.session, "fresh": None}
        connection = context.wrap_socket(connection, server_hostname=host, session=sessions[session])
        assert connection.session_reused == (session != "fresh"), f"{session}: {connection.session_reused}"
    try:
        while connection.recv(65536):
            pass
    except OSError:
        # What is refused is reset; the reply says why.
        pass
    connection.close()
    return code()


def store(path, content, end):
    connection = context.wrap_socket(plain_data("STOR " + path), server_hostname=host, session=ftp.sock.session)
    connection.sendall(content.encode())
    if end == "ended":
        connection.unwrap()
    connection.close()
    return code()


ftp, other = connect("admin"), connect("reader")
for action in actions:
    verb, *rest = action.split(":")
    print({"list": list_, "store": store, "noop": lambda: ftp.sendcmd("NOOP")[:3]}[verb](*rest))
