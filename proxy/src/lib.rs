//! RESP connections, sessions, routing.
