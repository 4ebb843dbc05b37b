/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sf-mpich.so: preloaded into the ranks of an MPI job, lets their connections go on while they wait for mpiexec.
 *
 * MPICH 4.0 over UCX, as Debian 12 has it, ends in two steps. MPI_Finalize() closes the connections to all ranks and
 * works on all of them until the last is closed; then it waits in a barrier of mpiexec's, in a read() that blocks. A
 * connection that was never used may still be on its way to being made, and closing it waits for that; but both ends must
 * work to make it. So it happens that
 *
 *     rank 0    closes: rank 2 has not answered yet         for ever
 *     rank 1    read(): not all are in the barrier          for ever
 *     rank 2    read(): not all are in the barrier          for ever, and the request of rank 0 lies in its socket
 *
 * and the more ranks get out of step, the more often: fresh clones do, and busy hosts. Later releases of MPICH have no such
 * barrier (its pull request 6596).
 *
 * Here read() of the connection to mpiexec (PMI_FD) works on the rank's UCX workers while there is nothing to be read.
 * Programs need not be linked anew, and what is no rank does not notice: without PMI_FD and a worker nothing differs.
 *
 * Workers are made, used and destroyed by the threads that are within MPI, one at a time by MPICH's own lock; read() of
 * PMI_FD is within MPI, too.
 */
#include <dlfcn.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define UCX         "libucp.so.0"
#define WORKERS_MAX 64              /* MPICH has one for each of its virtual interfaces, 64 at most */
#define PAUSE_MS    1               /* when there was nothing to do */

/* As ucp/api/ucp.h has them; its status is an enumeration packed into one byte. */
typedef signed char ucx_status;
typedef ucx_status worker_create(void *context, const void *parameters, void **worker);
typedef void worker_destroy(void *worker);
typedef unsigned worker_progress(void *worker);
typedef ssize_t read_function(int fd, void *buffer, size_t size);

ucx_status ucp_worker_create(void *context, const void *parameters, void **worker);
void ucp_worker_destroy(void *worker);

static void *workers[WORKERS_MAX];
static unsigned worker_count;

/* A function of UCX, which is there already: its caller is a library that is linked with it. */
static void *of_ucx(const char *name)
{
    void *library = dlopen(UCX, RTLD_LAZY | RTLD_NOLOAD);

    return library ? dlsym(library, name) : NULL;
}

ucx_status ucp_worker_create(void *context, const void *parameters, void **worker)
{
    worker_create *create = (worker_create *)of_ucx("ucp_worker_create");
    ucx_status status = create(context, parameters, worker);

    if (status == 0 && worker_count < WORKERS_MAX) {
        workers[worker_count++] = *worker;
    }
    return status;
}

void ucp_worker_destroy(void *worker)
{
    worker_destroy *destroy = (worker_destroy *)of_ucx("ucp_worker_destroy");

    for (unsigned i = 0; i < worker_count; i++) {
        if (workers[i] == worker) {
            workers[i] = workers[--worker_count];
            break;
        }
    }
    destroy(worker);
}

/* Until there is something to be read, or the other end is gone. */
static void work(int fd)
{
    worker_progress *progress = (worker_progress *)of_ucx("ucp_worker_progress");
    struct pollfd input = { .fd = fd, .events = POLLIN };
    unsigned done = 0;

    while (progress && worker_count > 0 && poll(&input, 1, done > 0 ? 0 : PAUSE_MS) == 0) {
        done = 0;
        for (unsigned i = 0; i < worker_count; i++) {
            done += progress(workers[i]);
        }
    }
}

/* Whether this is the connection to mpiexec. */
static int is_manager(int fd)
{
    const char *text = getenv("PMI_FD");

    return text && *text && atoi(text) == fd;
}

ssize_t read(int fd, void *buffer, size_t size)
{
    static read_function *real;

    if (!real) {
        real = (read_function *)dlsym(RTLD_NEXT, "read");
    }
    if (worker_count > 0 && is_manager(fd)) {
        work(fd);
    }
    return real(fd, buffer, size);
}
