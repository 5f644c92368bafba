package control

import (
	"net/http"

	"github.com/volant-edge/volant/api"
)

// machineRoutes are machines and what is done to them.
func (s *Server) machineRoutes() []Route {
	nonce := header(headerNonce, "string", "nonce of the caller's lease on the machine")
	return []Route{
		at("GET /v1/apps/{app}/machines", scopeRead, "machine.list", s.listMachines, "List an app's machines, oldest first", nil, ok([]api.Machine{}),
			query("include_deleted", "boolean", "destroyed ones too"),
			query("region", "string", "only in this region"),
			query("state", "string", "only in these states, with commas between"),
			query("summary", "boolean", "without config, checks and events"),
			query("metadata.KEY", "string", "only with this value of the metadata KEY, whatever that is called")),
		at("POST /v1/apps/{app}/machines", scopeDeploy, "machine.create", s.createMachine, "Create a machine", api.CreateMachine{}, ok(api.Machine{})),
		at("GET /v1/apps/{app}/machines/{id}", scopeRead, "machine.get", s.getMachine, "Read a machine; a destroyed one too", nil, ok(api.Machine{})),
		at("POST /v1/apps/{app}/machines/{id}", scopeDeploy, "machine.update", s.updateMachine, "Give a machine a whole new config; a running one is replaced in place", api.UpdateMachine{}, ok(api.Machine{}), nonce),
		at("PATCH /v1/apps/{app}/machines/{id}", scopeDeploy, "machine.update", s.patchMachine, "Change parts of a machine's config, by a JSON merge patch (RFC 7396)", api.PatchMachine{}, ok(api.Machine{}), nonce),
		at("GET /v1/apps/{app}/machines/{id}/versions", scopeRead, "machine.versions", s.machineVersions, "List the configs a machine has and had, newest first", nil, ok([]api.MachineVersion{})),
		at("GET /v1/apps/{app}/machines/{id}/lease", scopeRead, "lease.get", s.getLease, "Read who holds a machine's lease, and until when", nil, ok(api.Lease{})),
		at("POST /v1/apps/{app}/machines/{id}/lease", scopeDeploy, "lease.take", s.takeLease, "Take a machine's lease, or renew it: others cannot change, stop or destroy the machine", api.CreateLease{}, created(api.Lease{}),
			nonce, query("ttl", "integer", "seconds, 1 to 86400, in place of the body's")),
		at("DELETE /v1/apps/{app}/machines/{id}/lease", scopeDeploy, "lease.end", s.endLease, "Give a machine's lease back", nil, ok(api.Done{}), nonce.required()),
		at("GET /v1/apps/{app}/machines/{id}/metadata", scopeRead, "metadata.get", s.getMetadata, "Read a machine's metadata", nil, ok(map[string]string{})),
		at("PUT /v1/apps/{app}/machines/{id}/metadata", scopeDeploy, "metadata.set", s.setMetadata(true), "Replace a machine's metadata; it does not restart", api.SetMetadata{}, empty(http.StatusNoContent), nonce),
		at("PATCH /v1/apps/{app}/machines/{id}/metadata", scopeDeploy, "metadata.set", s.setMetadata(false), "Change some of a machine's metadata; it does not restart", api.SetMetadata{}, empty(http.StatusNoContent), nonce),
		at("GET /v1/apps/{app}/machines/{id}/metadata/{key}", scopeRead, "metadata.get", s.getMetadataKey, "Read one of a machine's metadata", nil, ok(api.MetadataValue{})),
		at("POST /v1/apps/{app}/machines/{id}/metadata/{key}", scopeDeploy, "metadata.set", s.setMetadataKey, "Set one of a machine's metadata", api.SetMetadataValue{}, empty(http.StatusNoContent), nonce),
		at("DELETE /v1/apps/{app}/machines/{id}/metadata/{key}", scopeDeploy, "metadata.set", s.dropMetadataKey, "Remove one of a machine's metadata", nil, empty(http.StatusNoContent), nonce),
		at("DELETE /v1/apps/{app}/machines/{id}", scopeDeploy, "machine.destroy", s.destroyMachine, "Destroy a machine", nil, ok(api.Done{}),
			nonce,
			query("force", "boolean", "also while it runs"),
			query("kill", "boolean", "the same as force")),
		at("GET /v1/apps/{app}/machines/{id}/wait", scopeRead, "machine.wait", s.waitMachine, "Wait until a machine is in a state", nil, ok(api.Waited{}),
			query("state", "string", "started (default), stopped, suspended, destroyed, failed, created, or settled: none of those that pass; several with commas between, or given several times").many(),
			query("version", "string", "wait until this version of its config is in the state"),
			query("instance_id", "string", "the same as version"),
			query("from_event_id", "string", "only what happened after this event counts, though it be over"),
			query("timeout", "integer", "seconds to wait, 1 to 600; 60")),
		at("GET /v1/apps/{app}/machines/{id}/events", scopeRead, "machine.events", s.machineEvents, "Read what happened to a machine, newest first", nil, ok([]api.MachineEvent{}),
			query("limit", "integer", "how many, 1 to 50; 20")),
		at("GET /v1/apps/{app}/machines/{id}/ps", scopeRead, "machine.ps", s.machineProcesses, "List what runs in an awake machine", nil, ok([]api.Process{}),
			query("sort_by", "string", "pid (default), stime, rtime, command, cpu or rss"),
			query("order", "string", "asc (default) or desc")),
		at("GET /v1/apps/{app}/machines/{id}/memory", scopeRead, "machine.memory", s.machineMemory, "Read how much memory an awake machine has left", nil, ok(api.Memory{})),
		at("POST /v1/apps/{app}/machines/{id}/start", scopeDeploy, "machine.start", s.startMachine, "Start a machine", nil, ok(api.Acted{}), nonce),
		at("POST /v1/apps/{app}/machines/{id}/stop", scopeDeploy, "machine.stop", s.stopMachine, "Stop a machine", api.StopMachine{}, ok(api.Acted{}), nonce),
		at("POST /v1/apps/{app}/machines/{id}/suspend", scopeDeploy, "machine.suspend", s.suspendMachine, "Suspend a machine: its memory goes to disk", nil, ok(api.Acted{}), nonce),
		at("POST /v1/apps/{app}/machines/{id}/restart", scopeDeploy, "machine.restart", s.restartMachine, "End a machine's process and run it again, in place", nil, ok(api.Acted{}), nonce,
			query("timeout", "string", "until it is killed: a time such as 10s, or seconds; as its config says if missing"),
			query("signal", "string", "asks it to end; as its config says if missing"),
			query("force_stop", "boolean", "kill it at once")),
		at("POST /v1/apps/{app}/machines/{id}/signal", scopeDeploy, "machine.signal", s.signalMachine, "Send a signal to a machine's main process", api.SignalMachine{}, ok(api.Acted{}), nonce),
		at("POST /v1/apps/{app}/machines/{id}/cordon", scopeDeploy, "machine.cordon", s.cordon(true), "Take a machine out of routing", nil, ok(api.Done{}), nonce),
		at("POST /v1/apps/{app}/machines/{id}/uncordon", scopeDeploy, "machine.uncordon", s.cordon(false), "Let a machine take connections again", nil, ok(api.Done{}), nonce),
		at("POST /v1/apps/{app}/machines/{id}/exec", scopeDeploy, "machine.exec", s.exec, "Run a command in a machine", api.Exec{}, ok(api.ExecResult{}).orStream(api.ExecFrame{})),
		at("GET /v1/orgs/{org}/machines", scopeRead, "org.machines", s.orgMachines, "List the machines of an organization's apps, in the order of their last change", nil, ok(api.OrgMachines{}),
			query("include_deleted", "boolean", "destroyed ones too"),
			query("region", "string", "only in this region"),
			query("state", "string", "only in these states, with commas between"),
			query("metadata.KEY", "string", "only with this value of the metadata KEY, whatever that is called"),
			query("summary", "boolean", "without config"),
			query("updated_after", "date-time", "only what changed after this time, its state too"),
			query("cursor", "string", "next_cursor of the answer before, in place of updated_after"),
			query("limit", "integer", "how many, 1 to 1000; 500")),
	}
}
