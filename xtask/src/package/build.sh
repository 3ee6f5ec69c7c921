#!/bin/sh
# Builds the packages in a root file system of a Debian release, and checks them.
#
# Usage: build.sh DIR PARTS
# DIR is the unpacked source. PARTS is "binary", or "full" for the source package as well. The packages get into the
# directory above DIR. The Rust toolchain is below /opt.
set -e
exec 2>&1
export PATH="/opt/bin:$PATH" HOME=/tmp DEB_BUILD_PROFILES=pkg.regcache.toolchain
cd "$1"
dpkg-buildpackage -us -uc -sa --build="$2"
# The build products are large, and the packages contain all that is needed from them.
rm -rf debian/cargo-target debian/cargo-home
cd ..
lintian --version
lintian --allow-root --fail-on error --tag-display-limit 0 --suppress-tags bad-distribution-in-changes-file ./*.changes
