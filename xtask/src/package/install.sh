# Installs the packages in /mnt in a bare root, uses them as README.Debian says, and removes them. The directory
# packaging/debian/tests is /opt.

index /mnt /tmp/repo

echo "== the tool, from apt-get to the end of the bug"
started=$(date +%s)
apt_from /tmp/repo regcache
regcache repro --rounds 100 >/tmp/said 2>&1 || [ $? -eq 77 ] || { cat /tmp/said; fail "regcache repro"; }
grep '^reuse:\|^no io_uring' /tmp/said
seconds=$(($(date +%s) - started))
echo "from apt-get to regcache_stale: $seconds s"
[ $seconds -lt 180 ] || fail "more than three minutes"

echo "== doctor"
status=0
regcache doctor >/tmp/said || status=$?
[ $status -le 1 ] || fail "regcache doctor: status $status"
cat /tmp/said
grep -q 'ok       preload shim: /usr/lib/.*/regcache/librcpreload.so' /tmp/said || fail "doctor does not find the shim"
! grep -q 'cargo xtask\|make -C' /tmp/said || fail "doctor names commands that need the repository"
regcache doctor --json >/tmp/json || [ $? -eq $status ] || fail "doctor --json has another status"
grep -q '"status": *[01]' /tmp/json || { cat /tmp/json; fail "doctor --json"; }

echo "== the shim"
[ "$(regcache run -- sh -c 'echo $LD_PRELOAD')" ] || fail "regcache run preloads nothing"

echo "== the C library"
apt_from /tmp/repo gcc libc6-dev libregcache-dev pkg-config
mkdir -p /tmp/link
cd /tmp/link
cp /usr/share/doc/libregcache-dev/examples/* .
cc first.c $(pkg-config --cflags --libs regcache)
./a.out >said 2>&1 || grep -q 'no RDMA device' said || { cat said; fail "first.c"; }
cat said
for test in reuse link; do
	AUTOPKGTEST_TMP=$(mktemp -d)
	export AUTOPKGTEST_TMP
	status=0
	sh "/opt/$test" || status=$?
	[ $status -eq 0 ] || [ $status -eq 77 ] || fail "autopkgtest $test: status $status"
done

echo "== the pages and completions"
for file in man/man1/regcache.1.gz man/man3/regcache.3.gz man/man7/regcache-preload.7.gz \
	bash-completion/completions/regcache zsh/vendor-completions/_regcache fish/vendor_completions.d/regcache.fish \
	doc/regcache/README.Debian doc/regcache/copyright; do
	dpkg -L regcache libregcache-dev | grep -q "/usr/share/$file" || fail "no /usr/share/$file"
done

echo "== removal"
apt_from /tmp/repo dkms
listing >/tmp/before
apt_from /tmp/repo ummunotify-dkms regcache-doc
[ -e /usr/src/ummunotify-*/ummunotify.c ] || fail "no source for DKMS"
[ -d /var/lib/dkms/ummunotify ] || fail "DKMS does not know the driver"
apt-get -qq -y purge regcache libregcache-dev libregcache0 ummunotify-dkms regcache-doc >/tmp/apt.log 2>&1 ||
	{ cat /tmp/apt.log; fail "purge"; }
listing >/tmp/after
# These paths existed before only because of the packages of regcache.
comm -13 /tmp/before /tmp/after >/tmp/left
[ ! -s /tmp/left ] || { cat /tmp/left; fail "purge leaves files"; }
! grep -i 'regcache\|ummunotify\|rcpreload' /tmp/after || fail "purge leaves files"
echo "purge leaves nothing"
