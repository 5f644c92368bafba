package doctor

// For tests.
var (
	Virtualization = virtualization
	Existing       = existing
)

// Memory are the facts of /proc/meminfo.
func Memory(meminfo string) (total, available, swap int) {
	var f Facts
	f.lookMemory(meminfo)
	return f.MemoryMB, f.AvailableMB, f.SwapMB
}
