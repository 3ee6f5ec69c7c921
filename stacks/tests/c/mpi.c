/*
 * mpi CHANGE MESSAGES: each rank of an MPI program sends messages to the next rank, which compares
 * every byte. The buffer of a sender changes after every second message. Rank 0 prints the sum of
 * all ranks.
 */
#include "memory.h"

#include <mpi.h>

#include "counted.h"

/* Open MPI sends smaller messages through buffers of its own. */
#define MPI_LENGTH (256 * 1024)

int main(int argc, char **argv)
{
	/* The thread of the buffer still looks at it when main() has returned. */
	static struct buffer buffer;
	unsigned char *sink;
	long messages, counts[3] = { 0 }, sums[3];
	size_t len = MPI_LENGTH;
	int rank, ranks, provided;

	if (argc != 3)
		errx(2, "usage: %s CHANGE MESSAGES", argv[0]);
	if (getenv("MPI_LENGTH"))
		len = strtoul(getenv("MPI_LENGTH"), NULL, 10);
	buffer_open(&buffer, change_of(argv[1]), len);
	MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	/* The messages of all ranks together. */
	messages = atol(argv[2]) / ranks;
	sink = map_sink(len);
	counted[0] = (struct range){ buffer.at, len };
	counted[1] = (struct range){ sink, len };
	for (long i = 0; i < messages; i++) {
		int next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
		MPI_Request request;

		if (i % 2 == 0 && i > 0)
			buffer_change(&buffer);
		memset(buffer.at, byte_of(i + rank), len);
		memset(sink, 0, len);
		MPI_Irecv(sink, (int)len, MPI_BYTE, previous, 0, MPI_COMM_WORLD, &request);
		MPI_Send(buffer.at, (int)len, MPI_BYTE, next, 0, MPI_COMM_WORLD);
		MPI_Wait(&request, MPI_STATUS_IGNORE);
		counts[0] += !has_byte(sink, len, byte_of(i + previous));
	}
	counts[1] = messages;
	/* Each message needs a registration of the buffer and one of the sink. */
	counts[2] = 2 * messages - registrations;
	MPI_Reduce(counts, sums, 3, MPI_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
	if (rank == 0)
		report(sums[0], sums[1], sums[2]);
	MPI_Finalize();
	return 0;
}
