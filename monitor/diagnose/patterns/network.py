"""Hosts that cannot be reached and connections that break: rendezvous, hub, controllers.

Sources: torch's c10d/socket.cpp and TCPStore.cpp, gloo's transport, urllib3/requests, errno(3).
"""

from __future__ import annotations

from monitor.diagnose.model import FailureClass as F
from monitor.diagnose.model import Trust
from monitor.diagnose.rule import rule

NETWORK_RULES = (
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "max retries exceeded|name resolution|name or service not known|getaddrinfo|"
        "could not resolve|resolve host|network is unreachable|no route to host|"
        "failed to establish a new connection|nodename nor servname|nameresolutionerror",
        r"max retries exceeded|name resolution|name or service not known|"
        r"getaddrinfo.{0,20}(?:fail|error)|could not resolve|network is unreachable|"
        r"no route to host|failed to establish a new connection|nodename nor servname|"
        r"nameresolutionerror",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "couldn't connect to|can't connect to|cannot connect to|could not connect to|"
        "failed to connect|unable to connect|couldn't reach|connectionerror|"
        "offlinemodeisenabled|localentrynotfounderror|unable to contact slurm|unable to contact",
        r"(?:couldn't|can't|cannot|could not|failed to|unable to) (?:connect|reach|contact)\b|"
        r"(?:^|[\s.])(?:requests\.exceptions\.|urllib3\.exceptions\.)?ConnectionError\b|"
        r"offlinemodeisenabled|localentrynotfounderror",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "read timed out|readtimeout|connecttimeout|connect timeout|connection timed out|"
        "operation timed out|handshake timed out|request timed out|timeouterror|"
        "socket timed out|gateway time",
        r"read timed out|readtimeout|connecttimeout|connect timeout=|connection timed out|"
        r"operation timed out|handshake.{0,20}timed out|request timed out|"
        r"timeouterror: \[errno 110\]|socket timed out on send/recv|gateway time-?out",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "client socket has timed out|rendezvousconnectionerror|rendezvoustimeouterror|"
        "rendezvous|tcpstore|store",
        r"client socket has timed out|rendezvousconnectionerror|rendezvoustimeouterror|"
        r"rendezvous (?:has )?(?:timed out|failed)|timed out .{0,60}(?:rendezvous|clients joined)|"
        r"(?:connection to|connect to) the .{0,20}store .{0,20}failed|"
        r"tcpstore.{0,80}(?:timed out|failed|timeout after)",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "address already in use|eaddrinuse|server socket has failed|"
        "cannot assign requested address",
        r"address already in use|eaddrinuse|server socket has failed|"
        r"error.{0,60}cannot assign requested address",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "certificate|sslerror|ssl:|ssleof|tls",
        r"certificate.{0,20}verify.{0,10}fail|sslerror|ssleoferror|"
        r"eof occurred in violation of protocol|"
        r"(?:ssl|tls).{0,20}(?:handshake|connect).{0,30}(?:fail|error)",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "server error|too many requests|service unavailable|bad gateway|rate limit|http error|"
        "client error|internal server error|returned error code",
        r"\b50[0234] (?:server error|internal|service|bad gateway|gateway)|"
        r"\b429\b.{0,30}(?:too many|client error|rate)|too many requests|service unavailable|"
        r"bad gateway|hit(?:ting)? (?:the )?rate limit|rate limit (?:exceeded|reached)|"
        r"\b408 (?:client error|request)|returned error code: (?:429|50\d)",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.CAUSE,
        "incompleteread|chunkedencodingerror|protocolerror|remotedisconnected|"
        "without response|temporary failure|proxyerror|curl:|curl error|rpc failed|early eof|"
        "remote end hung up",
        r"incompleteread|chunkedencodingerror|protocolerror|remotedisconnected|"
        r"without response|temporary failure|proxyerror|curl: \(\d+\)|curl error|rpc failed|"
        r"early eof|remote end hung up",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.VICTIM,
        "connection reset|reset by peer|connection refused|broken pipe|closed by peer|"
        "connection was likely closed|connection closed|brokenpipeerror|pair closure|"
        "connection aborted",
        r"connection reset|reset by peer|connection refused|"
        r"(?:error|errno 32|fail|gloo|nccl|send|recv|store).{0,60}broken pipe|brokenpipeerror|"
        r"connection closed by (?:peer|remote)|connection was likely closed|pair closure|"
        r"connection aborted",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.VICTIM,
        "gloo|distnetworkerror|diststoreerror|recvvalue|sendbytes|store is not available",
        r"gloo.{0,120}(?:fail|error|closed|timed out|refused)|distnetworkerror|diststoreerror|"
        r"(?:recvvalue|sendbytes|recvbytes|recvvector) failed|store is not available",
    ),
    rule(
        F.NETWORK_ERROR,
        Trust.MENTION,
        "network error|zero bytes were transmitted",
        r"network error|zero bytes were transmitted",
        any_level=True,
    ),
)
