package metrics

// The families of apps.
var (
	edgeConnects        = series{"fly_edge_tcp_connects_count", "Connections of clients that a machine accepted.", ""}
	edgeDisconnects     = series{"fly_edge_tcp_disconnects_count", "Of those, the ones that have ended.", ""}
	edgeIn              = series{"fly_edge_data_in", "Bytes that came from clients.", ""}
	edgeOut             = series{"fly_edge_data_out", "Bytes that went to clients.", ""}
	edgeResponses       = series{"fly_edge_http_responses_count", "HTTP responses to clients.", "status"}
	edgeResponseTime    = series{"fly_edge_http_response_time_seconds", "Time from a request's headers to the end of its response.", "status"}
	edgeHandshakeErrors = series{"fly_edge_tls_handshake_errors", "TLS handshakes that failed.", "servername"}
	edgeHandshakeTime   = series{"fly_edge_tls_handshake_time_seconds", "Time of TLS handshakes.", "version"}

	appConcurrency  = series{"fly_app_concurrency", "Slots that the app's machines hold now.", ""}
	appConnects     = series{"fly_app_tcp_connects_count", "Connections that a machine accepted.", ""}
	appDisconnects  = series{"fly_app_tcp_disconnects_count", "Of those, the ones that have ended.", ""}
	appConnectTime  = series{"fly_app_connect_time_seconds", "Time from a client's connect until a machine accepted, waits and wakes included.", ""}
	appResponses    = series{"fly_app_http_responses_count", "HTTP responses of the app.", "status"}
	appResponseTime = series{"fly_app_http_response_time_seconds", "Time from a request's headers to the end of its response.", "status"}
	appWaiting      = series{"volant_app_waiting", "Connections that wait for a slot now.", ""}
	appRefused      = series{"volant_app_refused_total", "Connections that were refused, by the rule.", "rule"}
)

// The families of machines.
var (
	instanceUp         = series{"fly_instance_up", "1 while the machine's main process runs.", "instance"}
	instanceExitCode   = series{"fly_instance_exit_code", "Exit code of the machine's last run.", "instance"}
	instanceExitOOM    = series{"fly_instance_exit_oom", "1 if the machine's last run ran out of memory.", "instance"}
	instanceLoad       = series{"fly_instance_load_average", "Load average in the machine.", "instance minutes"}
	instanceCPU        = series{"fly_instance_cpu", "Hundredths of a second that the machine's CPUs spent, by mode.", "instance cpu_id mode"}
	instanceSlots      = series{"volant_instance_slots", "Slots that the machine holds now.", "instance"}
	instanceBoots      = series{"volant_instance_boots_total", "Boots and restores of the machine.", "instance"}
	instanceCPUSeconds = series{"volant_instance_cpu_seconds_total", "Seconds of CPU that the machine's VMM used.", "instance"}
	instanceThrottled  = series{"volant_instance_cpu_throttled_seconds_total", "Seconds that it wanted to run and its quota was used up.", "instance"}
)

// The families of the node.
var (
	nodeInfo       = series{"volant_node_info", "The node's version.", "version"}
	nodeMemory     = series{"volant_node_memory_bytes", "Memory that machines may hold.", ""}
	nodeMemoryFree = series{"volant_node_memory_free_bytes", "Of it, what is free.", ""}
	nodeMachines   = series{"volant_node_machines", "Machines on the node, asleep or awake.", ""}
	nodeAwake      = series{"volant_node_machines_awake", "Machines that are awake.", ""}
	nodeProxyUp    = series{"volant_node_proxy_up", "1 while the proxy answers.", ""}
	nodeUptime     = series{"volant_node_uptime_seconds", "Time since the server was started.", ""}
	nodeRevision   = series{"volant_node_intent_revision", "Revision of the intent that the node has.", ""}
	livePeers      = series{"volant_node_live_peers", "Other nodes that this one tells its live facts.", ""}
	liveSilent     = series{"volant_node_live_peers_silent", "Of those, the ones that were not heard for 6 s.", ""}
	liveFacts      = series{"volant_node_live_facts", "Facts of other nodes that are known.", ""}
	liveBehind     = series{"volant_node_live_behind", "Facts of this node that others have not acknowledged, each counted per node.", ""}
	liveLag        = series{"volant_node_live_lag_seconds", "How long the oldest of them waits.", ""}
	liveSent       = series{"volant_node_live_sent_bytes_total", "Bytes of datagrams sent.", ""}
	liveReceived   = series{"volant_node_live_received_bytes_total", "Bytes of datagrams received.", ""}
	liveResent     = series{"volant_node_live_resent_total", "Facts that were sent again.", ""}
	liveRefused    = series{"volant_node_live_refused_total", "Datagrams of strangers, of former starts, and malformed ones.", ""}
	liveMismatches = series{"volant_node_live_mismatches_total", "Digests of other nodes that differed.", ""}
)

// What a guest counts, and what it means: proc(5).
var (
	memoryNames = map[string]string{
		"mem_total": "Memory in all, bytes.", "mem_free": "Memory nobody uses, bytes.", "mem_available": "Memory a program can get, bytes.",
		"buffers": "Buffers, bytes.", "cached": "Page cache, bytes.", "swap_cached": "Swap that is in memory too, bytes.",
		"active": "Memory used lately, bytes.", "inactive": "Memory not used lately, bytes.", "swap_total": "Swap, bytes.",
		"swap_free": "Swap nobody uses, bytes.", "dirty": "Memory to be written to disk, bytes.", "writeback": "Memory being written to disk, bytes.",
		"slab": "Memory of the kernel's structures, bytes.", "shmem": "Shared memory, bytes.", "vmalloc_total": "Address space of vmalloc, bytes.",
		"vmalloc_used": "Used of it, bytes.", "vmalloc_chunk": "Largest free piece of it, bytes.",
	}
	cpuModes  = []string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"}
	diskNames = map[string]string{
		"reads_completed": "Reads.", "reads_merged": "Reads that were merged.", "sectors_read": "Sectors read, of 512 bytes.", "time_reading": "Milliseconds of reads.",
		"writes_completed": "Writes.", "writes_merged": "Writes that were merged.", "sectors_written": "Sectors written, of 512 bytes.",
		"time_writing": "Milliseconds of writes.", "io_in_progress": "Requests in progress.", "time_io": "Milliseconds with requests.",
		"time_io_weighted": "Milliseconds of all requests.",
	}
	linkNames = map[string]string{
		"recv_bytes": "Bytes received.", "recv_packets": "Packets received.", "recv_errs": "Errors of receiving.", "recv_drop": "Packets dropped on receipt.",
		"recv_fifo": "Overruns of receiving.", "recv_frame": "Framing errors.", "recv_compressed": "Compressed packets received.", "recv_multicast": "Multicasts received.",
		"sent_bytes": "Bytes sent.", "sent_packets": "Packets sent.", "sent_errs": "Errors of sending.", "sent_drop": "Packets dropped on sending.",
		"sent_fifo": "Overruns of sending.", "sent_colls": "Collisions.", "sent_carrier": "Losses of the carrier.", "sent_compressed": "Compressed packets sent.",
	}
	fileNames       = map[string]string{"allocated": "File handles in use.", "maximum": "File handles there may be."}
	fileSystemNames = map[string]string{
		"blocks": "Blocks.", "block_size": "Bytes of a block.", "blocks_free": "Free blocks.", "blocks_avail": "Free blocks for ordinary users.",
	}
)
