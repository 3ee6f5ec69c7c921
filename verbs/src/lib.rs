//! RDMA verbs for regcache.
