"""Global variables whose type is known.

BTF types only per-CPU variables. What the others are stands in the kernel's
headers: the table has those whose type has not changed in the kernels of the
last ten years, and an entry is used only where the kernel has a type of that
name whose size fits between the symbol and the next one.
"""

from __future__ import annotations

import re
from dataclasses import replace

from kvmgdb.errors import KvmgdbError, MemoryFault, NoRamError
from kvmgdb.linux.kernel import Kernel
from kvmgdb.linux.modules import Module
from kvmgdb.linux.native import Kind
from kvmgdb.symbols.native import PerCpu, Variable

# "TYPE", "TYPE *" or either with "[]", and the variables that are of it.
_TYPES = {
    "struct task_struct": "init_task",
    "struct task_struct *": "kthreadd_task",
    "struct mm_struct": "init_mm",
    "struct pid_namespace": "init_pid_ns",
    "struct nsproxy": "init_nsproxy",
    "struct uts_namespace": "init_uts_ns",
    "struct ipc_namespace": "init_ipc_ns",
    "struct user_namespace": "init_user_ns",
    "struct cgroup_namespace": "init_cgroup_ns",
    "struct time_namespace": "init_time_ns",
    "struct net": "init_net",
    "struct cred": "init_cred",
    "struct fs_struct": "init_fs",
    "struct files_struct": "init_files",
    "struct pid": "init_struct_pid",
    "struct list_head": (
        "modules super_blocks net_namespace_list pernet_list ptype_all slab_caches"
        " vmap_area_list acpi_bus_id_list dpm_list clocksource_list pci_root_buses"
        " crypto_alg_list workqueues"
    ),
    "struct rw_semaphore": (
        "net_rwsem pernet_ops_rwsem crypto_alg_sem namespace_sem cgroup_threadgroup_rwsem"
    ),
    "struct mutex": "module_mutex rtnl_mutex slab_mutex cgroup_mutex text_mutex",
    "rwlock_t": "tasklist_lock",
    "unsigned long": (
        "jiffies loops_per_jiffy max_low_pfn max_pfn min_low_pfn max_mapnr page_offset_base"
        " vmalloc_base vmemmap_base phys_base saved_max_pfn tainted_mask"
    ),
    "unsigned long []": "avenrun __per_cpu_offset",
    "u64": "jiffies_64",
    "unsigned int": "nr_cpu_ids tsc_khz cpu_khz",
    "int": "nr_threads panic_timeout panic_on_oops oops_in_progress",
    "char *": "saved_command_line static_command_line",
    "char []": "boot_command_line linux_banner linux_proc_banner",
    "char": "_text _stext _etext _sdata _edata __bss_start __bss_stop _end",
    "struct cpumask": (
        "__cpu_possible_mask __cpu_online_mask __cpu_present_mask __cpu_active_mask"
        " __cpu_dying_mask"
    ),
    "enum system_states": "system_state",
    "struct boot_params": "boot_params",
    "struct cpuinfo_x86": "boot_cpu_data new_cpu_data",
    "struct pglist_data": "contig_page_data",
    "struct pglist_data * []": "node_data",
    "struct resource": "iomem_resource ioport_resource",
    "struct file_system_type *": "file_systems",
    "struct workqueue_struct *": (
        "system_wq system_highpri_wq system_long_wq system_unbound_wq system_freezable_wq"
        " system_power_efficient_wq"
    ),
    "struct kmem_cache *": (
        "names_cachep files_cachep fs_cachep sighand_cachep task_struct_cachep vm_area_cachep"
    ),
    "struct root_domain": "def_root_domain",
    "struct rt_bandwidth": "def_rt_bandwidth",
    "struct sched_class": (
        "fair_sched_class rt_sched_class dl_sched_class idle_sched_class stop_sched_class"
    ),
    "struct task_group": "root_task_group",
    "struct css_set": "init_css_set",
    "struct cgroup_root": "cgrp_dfl_root",
    "struct inet_hashinfo": "tcp_hashinfo",
    "struct proto": "tcp_prot udp_prot raw_prot ping_prot tcpv6_prot udpv6_prot",
    "struct printk_ringbuffer *": "prb",
    "struct clocksource *": "curr_clocksource",
    "struct blocking_notifier_head": "reboot_notifier_list",
    "struct atomic_notifier_head": "panic_notifier_list",
    "struct bus_type": "pci_bus_type platform_bus_type cpu_subsys",
    "struct console *": "console_drivers",
    "struct x86_init_ops": "x86_init",
    "struct x86_platform_ops": "x86_platform",
    "struct apic *": "apic",
    "struct screen_info": "screen_info",
    "struct efi": "efi",
    "gate_desc []": "idt_table",
    "pgd_t []": "init_top_pgt",
}
_TYPE = re.compile(r"(?P<name>.*?)(?P<pointer> \*)?(?P<array> \[\])?$")
# GCC's names of types that Clang calls as C programmers do.
_OTHER_NAMES = {"unsigned long": "long unsigned int"}
_MAX_ELEMENTS = 1 << 16
_MAX_TEXT = 4096


def typed_variables(kernel: Kernel) -> list[Variable]:
    """The variables of the table that this kernel has. Raises KvmgdbError where it
    has no types."""
    found = []
    for type_name, names in _TYPES.items():
        for name in names.split():
            variable = _typed(kernel, name, type_name)
            if variable is not None:
                found.append(variable)
    return found


def _typed(kernel: Kernel, name: str, type_name: str) -> Variable | None:
    symbols = list(kernel.symbols.named(name))
    match = _TYPE.match(type_name)
    if len(symbols) != 1 or match is None or symbols[0].address < kernel.base:
        return None
    names = (match["name"], _OTHER_NAMES.get(match["name"], match["name"]))
    declared = next(filter(None, map(kernel.types.find, names)), None)
    if declared is None:
        return None
    room = kernel.symbols.size_of(symbols[0].index)
    pointer = bool(match["pointer"])
    size = 8 if pointer else kernel.types.table.size(declared.id)
    if not 0 < size <= room:
        return None
    elements = None
    if type_name == "char []":
        try:
            text = kernel.string(symbols[0].address, min(room, _MAX_TEXT))
        except (MemoryFault, NoRamError):
            # With page-table isolation the kernel unmaps what only its start needed.
            return None
        elements = len(text.encode()) + 1
    elif match["array"]:
        elements = min(room // size, _MAX_ELEMENTS)
    return Variable(name, symbols[0].address, declared.id, pointer, elements)


def per_cpu_area(kernel: Kernel) -> PerCpu | None:
    """Where per-CPU data is found. None where the kernel does not tell."""
    start = kernel.find_symbol("__per_cpu_start")
    table = kernel.find_symbol("__per_cpu_offset")
    if start is None or table is None:
        return None
    try:
        cpus = kernel.cpu_count
    except KvmgdbError:
        return None
    return PerCpu(table, start, cpus)


def module_per_cpu_area(kernel: Kernel, module: Module) -> PerCpu | None:
    """The same for a module's own per-CPU data. None where it has none, or the types do
    not agree with the symbols. Raises KvmgdbError."""
    area, table = per_cpu_area(kernel), module.types.table
    section = table.find(".data..percpu", Kind.DATASEC)
    start = module.per_cpu
    if area is None or section is None or section.id not in table.ids or not start:
        return None
    for entry in table.members(section.id):
        name = table.type(entry.type).name
        if start + entry.offset not in {symbol.address for symbol in module.symbols.named(name)}:
            return None
    return replace(area, start=start)
