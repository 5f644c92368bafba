package control

import "github.com/volant-edge/volant/api"

// machineRoutes are machines and what is done to them.
func (s *Server) machineRoutes() []Route {
	return []Route{
		at("GET /v1/apps/{app}/machines", scopeRead, "machine.list", s.listMachines, "List an app's machines, oldest first", nil, ok([]api.Machine{}),
			query("include_deleted", "boolean", "destroyed ones too"),
			query("region", "string", "only in this region"),
			query("state", "string", "only in these states, with commas between")),
		at("POST /v1/apps/{app}/machines", scopeDeploy, "machine.create", s.createMachine, "Create a machine", api.CreateMachine{}, ok(api.Machine{})),
		at("GET /v1/apps/{app}/machines/{id}", scopeRead, "machine.get", s.getMachine, "Read a machine; a destroyed one too", nil, ok(api.Machine{})),
		at("DELETE /v1/apps/{app}/machines/{id}", scopeDeploy, "machine.destroy", s.destroyMachine, "Destroy a machine", nil, ok(api.Done{}),
			query("force", "boolean", "also while it runs"),
			query("kill", "boolean", "the same as force")),
		at("GET /v1/apps/{app}/machines/{id}/wait", scopeRead, "machine.wait", s.waitMachine, "Wait until a machine is in a state", nil, ok(api.Waited{}),
			query("state", "string", "started (default), stopped, suspended, destroyed, failed, or settled: none of those that pass"),
			query("timeout", "integer", "seconds to wait, 1 to 60; 60")),
		at("GET /v1/apps/{app}/machines/{id}/events", scopeRead, "machine.events", s.machineEvents, "Read what happened to a machine, newest first", nil, ok([]api.MachineEvent{}),
			query("limit", "integer", "how many, 1 to 50; 20")),
		at("POST /v1/apps/{app}/machines/{id}/start", scopeDeploy, "machine.start", s.startMachine, "Start a machine", nil, ok(api.Acted{})),
		at("POST /v1/apps/{app}/machines/{id}/stop", scopeDeploy, "machine.stop", s.stopMachine, "Stop a machine", api.StopMachine{}, ok(api.Acted{})),
		at("POST /v1/apps/{app}/machines/{id}/suspend", scopeDeploy, "machine.suspend", s.suspendMachine, "Suspend a machine: its memory goes to disk", nil, ok(api.Acted{})),
		at("POST /v1/apps/{app}/machines/{id}/restart", scopeDeploy, "machine.restart", s.restartMachine, "Stop a machine and start it again", nil, ok(api.Acted{})),
		at("POST /v1/apps/{app}/machines/{id}/signal", scopeDeploy, "machine.signal", s.signalMachine, "Send a signal to a machine's main process", api.SignalMachine{}, ok(api.Acted{})),
		at("POST /v1/apps/{app}/machines/{id}/cordon", scopeDeploy, "machine.cordon", s.cordon(true), "Take a machine out of routing", nil, ok(api.Done{})),
		at("POST /v1/apps/{app}/machines/{id}/uncordon", scopeDeploy, "machine.uncordon", s.cordon(false), "Let a machine take connections again", nil, ok(api.Done{})),
		at("POST /v1/apps/{app}/machines/{id}/exec", scopeDeploy, "machine.exec", s.exec, "Run a command in a machine", api.Exec{}, ok(api.ExecResult{}).orStream(api.ExecFrame{})),
	}
}
