/* Takes the place of libucp, and claims to be a version of UCX that does not exist. */
void ucp_get_version(unsigned int *major, unsigned int *minor, unsigned int *release)
{
	*major = 1;
	*minor = 99;
	*release = 7;
}
