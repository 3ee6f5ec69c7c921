//! A memory monitor for libfabric's registration caches, on the ummunotify driver.
