/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What Slurm's commands print, as 22.05 prints it, and what they might print instead. */
#include <string.h>

#include "sfvmm/cluster/slurm_text.h"

static void test_grant(void)
{
    g_assert_cmpuint(sf_slurm_parse_grant("salloc: Granted job allocation 12\n"), ==, 12);
    g_assert_cmpuint(sf_slurm_parse_grant("salloc: Pending job allocation 7\nsalloc: job 7 queued and waiting for "
                                          "resources\nsalloc: job 7 has been allocated resources\nsalloc: Granted job "
                                          "allocation 7\nsalloc: Nodes a are ready for job\n"),
                     ==, 7);
    for (const char *const *text =
             (const char *const[]){ "", "salloc: Pending job allocation 7\n", "salloc: Granted job allocation 0\n",
                                    "salloc: Granted job allocation 7 \n", "salloc: Granted job allocation -7\n",
                                    "salloc: Granted job allocation 99999999999\n",
                                    " salloc: Granted job allocation 7\n",
                                    "salloc: Granted job allocation 7\n"
                                    "salloc: Granted job allocation 8\n",
                                    NULL };
         *text; text++) {
        g_assert_cmpuint(sf_slurm_parse_grant(*text), ==, 0);
    }
}

static void test_complaint(void)
{
    g_autofree char *busy =
        sf_slurm_parse_complaint("salloc: error: Unable to allocate resources: Requested nodes are busy\n");
    g_autofree char *partition =
        sf_slurm_parse_complaint("salloc: error: invalid partition specified: x\n"
                                 "salloc: error: Job submit/allocate failed: Invalid partition name specified\n\n");
    g_autofree char *plain = sf_slurm_parse_complaint("salloc: Job aborted due to signal\n");
    g_autofree char *none = sf_slurm_parse_complaint("\n"), *bytes = sf_slurm_parse_complaint("x: error: \xff\xfe\n");

    g_assert_cmpstr(busy, ==, "Unable to allocate resources: Requested nodes are busy");
    g_assert_true(sf_slurm_means_busy(busy));
    g_assert_cmpstr(partition, ==, "Job submit/allocate failed: Invalid partition name specified");
    g_assert_false(sf_slurm_means_busy(partition));
    g_assert_cmpstr(plain, ==, "salloc: Job aborted due to signal");
    g_assert_cmpstr(none, ==, "");
    g_assert_true(g_utf8_validate(bytes, -1, NULL));
}

/* The nodes of job 1, as "name:cpus name:cpus"; caller frees. */
static char *nodes_of(const char *text)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) nodes = sf_slurm_parse_nodes(text, 1, &error);
    g_autoptr(GString) out = g_string_new(NULL);

    g_assert_true((nodes != NULL) == (error == NULL));
    for (guint i = 0; nodes && i < nodes->len; i++) {
        const SfSlurmNode *node = g_ptr_array_index(nodes, i);
        g_string_append_printf(out, "%s%s:%u", i ? " " : "", node->name, node->cpus);
    }
    return nodes ? g_strdup(out->str) : NULL;
}

static void test_nodes(void)
{
    static const struct {
        const char *text, *nodes; /* NULL: an error */
    } cases[] = {
        { "JobId=1 JobName=x NodeList=a,b NumNodes=2 JOB_GRES=(null)   Nodes=a CPU_IDs=0-3 Mem=208 GRES=   Nodes=b "
          "CPU_IDs=0 Mem=52 GRES= MinCPUsNode=1\n",
          "a:4 b:1" },
        { "JobId=1 Nodes=n[8-10],x-1.org CPU_IDs=0,2-3 Mem=0 GRES=", "n8:3 n9:3 n10:3 x-1.org:3" },
        { "JobId=1 Nodes=r[1-2]n[01-02,7] CPU_IDs=7 Mem=0", "r1n01:1 r1n02:1 r1n7:1 r2n01:1 r2n02:1 r2n7:1" },
        { "JobId=1 Comment=Nodes=z JobState=RUNNING Nodes=a CPU_IDs=1 Mem=1", "a:1" },
        { "JobId=2 Nodes=a CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 NodeList=a NumNodes=1", NULL },
        { "JobId=1 Nodes=a CPU_IDs= Mem=1", NULL },
        { "JobId=1 Nodes=a CPU_IDs=3-1 Mem=1", NULL },
        { "JobId=1 Nodes=a CPU_IDs=0-99999 Mem=1", NULL },
        { "JobId=1 Nodes=a CPU_IDs=0- Mem=1", NULL },
        { "JobId=1 Nodes=n[1-2 CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes=n[] CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes=n[2-1] CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes=n[1-4000000000] CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes=n[1-999][1-999][1-999] CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes=a, CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes=a/b CPU_IDs=0 Mem=1", NULL },
        { "JobId=1 Nodes= CPU_IDs=0 Mem=1", NULL },
        { "", NULL },
        { "slurm_load_jobs error: Invalid job id specified", NULL },
    };

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *nodes = nodes_of(cases[i].text);
        g_test_message("%s", cases[i].text);
        g_assert_cmpstr(nodes, ==, cases[i].nodes);
    }
}

static void test_queue(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) jobs =
        sf_slurm_parse_queue("12|RUNNING|snowflock-a-0123456789abcdef\n3|NODE_FAIL|a name | with bars\n", &error);
    const SfSlurmJob *job;

    g_assert_no_error(error);
    g_assert_cmpuint(jobs->len, ==, 2);
    job = g_ptr_array_index(jobs, 1);
    g_assert_cmpuint(job->id, ==, 3);
    g_assert_cmpstr(job->state, ==, "NODE_FAIL");
    g_assert_cmpstr(job->name, ==, "a name | with bars");
    g_assert_true(sf_slurm_state_is_alive("RUNNING"));
    g_assert_false(sf_slurm_state_is_alive("TIMEOUT"));
    for (const char *const *text =
             (const char *const[]){ "x|RUNNING|y\n", "1|RUNNING\n", "1||y\n", "1|running|y\n", "-1|RUNNING|y\n", NULL };
         *text; text++) {
        g_assert_null(sf_slurm_parse_queue(*text, &error));
        g_assert_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA);
        g_clear_error(&error);
    }
    g_ptr_array_unref(g_steal_pointer(&jobs));
    jobs = sf_slurm_parse_queue("", &error);
    g_assert_cmpuint(jobs->len, ==, 0);
}

static void test_idle(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) nodes = sf_slurm_parse_idle("a|4/0/0/4\nb|1/3/0/4\nb|1/3/0/4\n", &error);

    g_assert_no_error(error);
    g_assert_cmpuint(nodes->len, ==, 2);
    g_assert_cmpuint(((const SfSlurmNode *)g_ptr_array_index(nodes, 1))->cpus, ==, 3);
    for (const char *const *text = (const char *const[]){ "a|4/0/0\n", "a\n", "a|1/x/1/1\n", "|1/1/1/1\n", NULL };
         *text; text++) {
        g_assert_null(sf_slurm_parse_idle(*text, &error));
        g_clear_error(&error);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/slurm_text/grant", test_grant);
    g_test_add_func("/slurm_text/complaint", test_complaint);
    g_test_add_func("/slurm_text/nodes", test_nodes);
    g_test_add_func("/slurm_text/queue", test_queue);
    g_test_add_func("/slurm_text/idle", test_idle);
    return g_test_run();
}
