# Upgrades the packages in /mnt to those in /opt while programs run, and mixes versions.

index /mnt /tmp/old
index /opt /tmp/new

# Starts a program under the shim, and a program that uses the C library. Both run until their pipe is closed.
apt_from /tmp/old regcache libregcache-dev gcc libc6-dev pkg-config ummunotify-dkms
cat >/tmp/use.c <<'END'
#include <regcache.h>
#include <stdio.h>

int main(void)
{
	char line[16];

	while (fgets(line, sizeof line, stdin)) {
		struct regcache *cache = NULL;
		int status = regcache_create(NULL, NULL, &cache);

		printf("%s %d %s\n", regcache_version(), status, regcache_error());
		fflush(stdout);
	}
}
END
cc -o /tmp/use /tmp/use.c $(pkg-config --cflags --libs regcache)
mkfifo /tmp/to /tmp/shim
/tmp/use </tmp/to >/tmp/said &
program=$!
exec 5>/tmp/to
regcache run -e REGCACHE_SUMMARY=1 -- sh -c 'read line && echo shim $line' </tmp/shim >/tmp/shimmed &
shimmed=$!
exec 6>/tmp/shim
echo before >&5

echo "== upgrade while both run"
apt_from /tmp/new regcache libregcache0 libregcache-dev ummunotify-dkms
[ "$(regcache --version)" = "regcache 0.2.0" ] || fail "regcache was not upgraded"
[ ! -e /usr/src/ummunotify-0.1.0 ] || fail "the old driver's source is still there"
[ -e /usr/src/ummunotify-0.2.0 ] || fail "the new driver's source is not there"
[ ! -e /var/lib/dkms/ummunotify/0.1.0 ] || fail "DKMS keeps the old driver"
echo after >&5
echo after >&6
exec 5>&- 6>&-
wait $program || fail "the program did not survive the upgrade"
wait $shimmed || fail "the program under the shim did not survive the upgrade"
cat /tmp/said /tmp/shimmed
[ "$(cut -d ' ' -f 1 /tmp/said | uniq -c | tr -s ' ')" = " 2 0.1.0" ] || fail "the program did not keep its library"
[ "$(cat /tmp/shimmed)" = "shim after" ] || fail "the program under the shim said something else"

echo "== a program that was linked with 0.1 runs with 0.2"
echo again | /tmp/use | tee /tmp/said
grep -q '^0.2.0 ' /tmp/said || fail "the program does not use the new library"

echo "== a program that was linked with 0.2 runs with 0.1"
cc -o /tmp/use /tmp/use.c $(pkg-config --cflags --libs regcache)
apt_from /tmp/old libregcache0=0.1.0\* libregcache-dev=0.1.0\*
echo again | /tmp/use | tee /tmp/said
grep -q '^0.1.0 ' /tmp/said || fail "the program does not use the old library"

echo "== the tool of one version and the library of the other"
regcache doctor >/dev/null || [ $? -eq 1 ] || fail "doctor"
apt-get -qq -y purge regcache libregcache-dev libregcache0 ummunotify-dkms >/dev/null 2>&1 || fail "purge"
