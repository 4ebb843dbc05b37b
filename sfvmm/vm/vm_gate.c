/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation
 *
 * Clones that run take CPU time from what their siblings still need to begin: of 32 on two CPUs the last executed its
 * first instruction after 770 ms, as guests were at work while others were being loaded. Hence two rules:
 *
 *     load --> wait, paused, until no load is under way --> cont, vCPUs at low priority --> all run --> usual priority
 *              (at most WAIT_MS)                                                           (at most LOW_MS)
 *
 * A clone that is loaded alone passes without waiting. The low priority is for vCPU threads only, so that QEMU's own
 * threads, which have to work off `cont`, come before guests. Raising a priority again needs a right that only root has
 * (CAP_SYS_NICE): without it, priorities are left alone.
 *
 * One gate for all VMs of the process. Main thread only.
 */
#include "sfvmm/vm/vm_private.h"

#include <sys/resource.h>
#include <unistd.h>

#define WAIT_MS  200u /* a loaded clone waits no longer for the loads of others */
#define LOW_MS   100u /* the longest time at low priority */
#define LOW_NICE 10

static struct {
    guint loading;  /* loads under way */
    GQueue waiting; /* of SfVm, loaded and to be resumed */
    GQueue low;     /* of SfVm, at low priority */
    guint wait_timer, low_timer;
} gate = { .waiting = G_QUEUE_INIT, .low = G_QUEUE_INIT };

/* ---- priorities ---- */

/* What QEMU says are its threads is believed only if the kernel says so too. */
static void set_priority(SfVm *vm, int nice_value)
{
    for (guint i = 0; i < vm->vcpu_threads->len && !vm->gone; i++) {
        pid_t thread = g_array_index(vm->vcpu_threads, pid_t, i);
        g_autofree char *path = g_strdup_printf("/proc/%d/task/%d", vm->pid, thread);
        if (thread > 0 && access(path, F_OK) == 0) {
            setpriority(PRIO_PROCESS, thread, nice_value);
        }
    }
}

static void on_vcpus(JsonNode *result, const GError *error, gpointer data)
{
    g_autoptr(SfVm) vm = data;
    JsonArray *cpus = result && JSON_NODE_HOLDS_ARRAY(result) ? json_node_get_array(result) : NULL;

    g_array_set_size(vm->vcpu_threads, 0);
    for (guint i = 0; cpus && i < MIN(json_array_get_length(cpus), SF_VM_VCPUS_MAX); i++) {
        JsonNode *cpu = json_array_get_element(cpus, i);
        JsonNode *id =
            JSON_NODE_HOLDS_OBJECT(cpu) ? json_object_get_member(json_node_get_object(cpu), "thread-id") : NULL;
        pid_t thread = id && json_node_get_value_type(id) == G_TYPE_INT64 ? json_node_get_int(id) : 0;
        g_array_append_val(vm->vcpu_threads, thread);
    }
    if (!g_queue_find(&gate.low, vm)) {
        set_priority(vm, 0); /* an sfvmmd that was killed may have left it low */
    }
}

void sf_vm_gate_learn(SfVm *vm)
{
    if (geteuid() == 0) {
        sf_qmp_execute(vm->qmp, "query-cpus-fast", NULL, -1, on_vcpus, g_object_ref(vm));
    }
}

static void end_low(void)
{
    SfVm *vm;

    g_clear_handle_id(&gate.low_timer, g_source_remove);
    while ((vm = g_queue_pop_head(&gate.low))) {
        set_priority(vm, 0);
        g_object_unref(vm);
    }
}

static gboolean on_low_time(gpointer data)
{
    gate.low_timer = 0;
    end_low();
    return G_SOURCE_REMOVE;
}

void sf_vm_gate_running(SfVm *vm)
{
    vm->passed_gate = TRUE;
    for (GList *other = gate.low.head; other; other = other->next) {
        const SfVm *sibling = other->data;
        if (!sibling->passed_gate && !sibling->gone) {
            return;
        }
    }
    end_low();
}

/* ---- the gate ---- */

static void open_gate(void)
{
    SfVm *vm;

    g_clear_handle_id(&gate.wait_timer, g_source_remove);
    while ((vm = g_queue_pop_head(&gate.waiting))) {
        set_priority(vm, LOW_NICE);
        sf_vm_resume_loaded(vm);
        g_queue_push_tail(&gate.low, vm);
    }
    if (gate.low.length > 0 && !gate.low_timer) {
        gate.low_timer = g_timeout_add(LOW_MS, on_low_time, NULL);
    }
}

static gboolean on_wait_time(gpointer data)
{
    gate.wait_timer = 0;
    open_gate();
    return G_SOURCE_REMOVE;
}

void sf_vm_gate_enter(void)
{
    gate.loading++;
}

gboolean sf_vm_gate_is_alone(void)
{
    return gate.loading == 1 && gate.waiting.length == 0;
}

void sf_vm_gate_wait(SfVm *vm)
{
    g_queue_push_tail(&gate.waiting, g_object_ref(vm));
    if (!gate.wait_timer) {
        gate.wait_timer = g_timeout_add(WAIT_MS, on_wait_time, NULL);
    }
}

void sf_vm_gate_leave(void)
{
    if (--gate.loading == 0) {
        open_gate();
    }
}
