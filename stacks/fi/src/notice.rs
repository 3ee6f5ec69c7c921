//! Writes messages for the user.

regcache::notices_to_stderr!("regcache: ");
