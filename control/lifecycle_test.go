package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// history is a machine's events, the oldest first, as "type status source".
func (r *rig) history(id string) []string {
	r.t.Helper()
	var events []api.MachineEvent
	r.want(200, "GET", machines+"/"+id+"/events?limit=50", "", &events)
	var out []string
	for i, e := range events {
		if len(e.ID) != 26 || e.Timestamp == 0 || i > 0 && e.ID >= events[i-1].ID {
			r.t.Errorf("event %d of %+v: want IDs of 26 characters, the newest first", i, events)
		}
		out = append(out, e.Type+" "+e.Status+" "+e.Source)
	}
	slices.Reverse(out)
	return out
}

func (r *rig) exits(id string) []api.ExitEvent {
	r.t.Helper()
	var out []api.ExitEvent
	for _, e := range r.get(id).Events {
		if (e.Type == "exit") != (e.Request != nil && e.Request.ExitEvent != nil) {
			r.t.Errorf("event %+v: want an exit event with exits alone", e)
		} else if e.Type == "exit" {
			out = append(out, *e.Request.ExitEvent)
		}
	}
	return out
}

func TestEventsTellAMachinesLife(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", "")
		path := machines + "/" + m.ID
		said := 0
		step := func(state string, want ...string) {
			t.Helper()
			r.wait(m.ID, state)
			synctest.Wait()
			got := r.history(m.ID)
			if fmt.Sprint(got[said:]) != fmt.Sprint(want) {
				t.Errorf("happened %q, want %q", got[said:], want)
			}
			said = len(got)
		}
		step("started", "launch created user", "start starting user", "start started flyd")
		r.want(200, "POST", path+"/suspend", "", nil)
		step("suspended", "suspend suspending user", "suspend suspended flyd")
		r.want(200, "POST", path+"/start", "", nil)
		step("started", "resume starting user", "resume started flyd")
		r.want(200, "POST", path+"/restart", "", nil)
		step("settled", "restart starting user", "exit starting flyd", "restart started flyd")
		r.want(200, "POST", path, body(`"env":{"A":"2"}`, ""), nil)
		step("started", "update updating user", "stop stopping user", "exit stopped flyd", "start starting flyd", "start started flyd")
		r.want(200, "POST", path+"/stop", "", nil)
		step("stopped", "stop stopping user", "exit stopped flyd")
		r.want(200, "DELETE", path, "", nil)
		step("destroyed", "destroy destroying user", "destroy destroyed flyd")
		if x := r.exits(m.ID); len(x) != 3 || !x[0].RequestedStop || x[0].Restarting || !x[1].RequestedStop || !x[2].Restarting {
			t.Errorf("exits %+v, want three asked for, the oldest to run again", x)
		}
	})
}

func TestADestroyedMachineIsReadWithItsExit(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", "")
		r.wait(m.ID, "started")
		r.want(412, "DELETE", machines+"/"+m.ID, "", nil)
		r.want(200, "DELETE", machines+"/"+m.ID+"?kill=true", "", nil)
		r.wait(m.ID, "destroyed")
		time.Sleep(time.Second)
		for _, when := range []string{"at once", "after a restart of the server"} {
			if got := r.get(m.ID); got.State != "destroyed" || len(r.exits(m.ID)) != 1 || got.HostStatus != "ok" {
				t.Errorf("%s it is %s with exits %+v, want destroyed with one", when, got.State, r.exits(m.ID))
			}
			var live, all []api.Machine
			r.want(200, "GET", machines, "", &live)
			r.want(200, "GET", machines+"?include_deleted=true", "", &all)
			if len(live) != 0 || len(all) != 1 {
				t.Errorf("%s %d machines are listed, %d with deleted ones: want 0 and 1", when, len(live), len(all))
			}
			r.want(404, "DELETE", machines+"/"+m.ID, "", nil)
			for _, verb := range []string{"start", "stop", "suspend", "restart", "cordon", "uncordon", "lease", "metadata/a"} {
				r.want(412, "POST", machines+"/"+m.ID+"/"+verb, `{"ttl":5,"value":"b"}`, nil)
			}
			r.want(412, "POST", machines+"/"+m.ID, body("", ""), nil)
			p.Stop()
			p.Start()
		}
	})
}

func TestWhatAStateDoesNotAllow(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", `"skip_launch":true`)
		r.wait(m.ID, "stopped")
		path := machines + "/" + m.ID
		for _, verb := range []string{"suspend", "restart"} {
			e := r.want(412, "POST", path+"/"+verb, "", nil)
			if want := "failed_precondition: unable to " + verb + " machine from current state: 'stopped'"; e.Error != want || e.Status != "failed_precondition" || e.Remedy == "" {
				t.Errorf("%s: %+v, want %q and a remedy", verb, e, want)
			}
		}
		r.want(412, "POST", path+"/exec", `{"command":["true"]}`, nil)
		r.want(412, "POST", path+"/signal", `{"signal":"SIGHUP"}`, nil)
		r.want(400, "POST", path+"/signal", `{"signal":"SIGNONE"}`, nil)
		r.want(400, "POST", path+"/stop", `{"signal":"SIGNONE"}`, nil)
		r.want(400, "POST", path+"/stop", `{"timeout":"soon"}`, nil)
		r.want(200, "POST", path+"/stop", "", nil)
		r.want(200, "POST", path+"/start", "", nil)
		r.wait(m.ID, "started")
		r.want(200, "POST", path+"/start", "", nil)
		var acted api.Acted
		r.want(200, "POST", path+"/stop", `{"signal":9,"timeout":1}`, &acted)
		if acted.PreviousState != "started" {
			t.Errorf("previous state %q, want started", acted.PreviousState)
		}
		r.wait(m.ID, "stopped")
	})
}

// The app ends by the signal of the call, not by its config's, and is killed after the time of the call.
func TestAStopHasASignalAndATimeOfItsOwn(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create(`"stop_config":{"signal":"SIGTERM","timeout":"5m"}`, "")
		for _, c := range []struct {
			body   string
			signal int
		}{{`{"signal":"SIGQUIT"}`, 3}, {`{"signal":"3"}`, 3}, {`{"signal":2}`, 2}, {`{"signal":"KILL"}`, 9}, {``, 15}, {`{"signal":"USR1","timeout":"2s"}`, 9}} {
			r.want(200, "POST", machines+"/"+m.ID+"/start", "", nil)
			r.wait(m.ID, "started")
			r.want(200, "POST", machines+"/"+m.ID+"/stop", c.body, nil)
			began := time.Now()
			r.wait(m.ID, "stopped")
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("stop %s took %v", c.body, took)
			}
			if x := r.exits(m.ID)[0]; x.Signal != c.signal || !x.RequestedStop {
				t.Errorf("stop %s: ended by signal %d, want %d", c.body, x.Signal, c.signal)
			}
		}
	})
}

func TestAStopIsNotUndoneByThePolicy(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		for _, policy := range []string{"always", "on-failure", "no"} {
			m := r.create(fmt.Sprintf(`"restart":{"policy":%q}`, policy), "")
			r.wait(m.ID, "started")
			r.want(200, "POST", machines+"/"+m.ID+"/stop", `{"signal":"SIGKILL"}`, nil)
			r.wait(m.ID, "stopped")
			time.Sleep(10 * time.Minute)
			p.Stop()
			p.Start()
			time.Sleep(10 * time.Minute)
			if got := r.get(m.ID); got.State != "stopped" {
				t.Errorf("policy %s: stopped by the API it is %s", policy, got.State)
			}
		}
	})
}

func TestWaitInAllStates(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", "")
		path := machines + "/" + m.ID
		wait := func(code int, query string) (w api.Waited) {
			t.Helper()
			r.want(code, "GET", path+"/wait?"+query, "", &w)
			if code == 200 && (!w.OK || w.EventID == "" || w.Version == "") {
				t.Errorf("wait %s answers %+v", query, w)
			}
			return w
		}
		wait(200, "")
		wait(200, "state=settled")
		started := wait(200, "state=started&version="+m.Version)
		wait(200, "state=started&instance_id="+m.Version)
		wait(200, "state=stopped,started")
		wait(200, "state=stopped&state=started")
		wait(400, "state=asleep")
		wait(400, "timeout=601")
		began := time.Now()
		if wait(408, "state=stopped&timeout=300"); time.Since(began) != 5*time.Minute {
			t.Errorf("a wait of 300 s took %v", time.Since(began))
		}
		wait(408, "state=started&timeout=1&from_event_id="+started.EventID)

		go func() {
			time.Sleep(10 * time.Second)
			r.want(200, "POST", path+"/suspend", "", nil)
		}()
		if w := wait(200, "state=suspended"); w.State != "suspended" {
			t.Errorf("waited for suspended: %+v", w)
		}
		r.want(200, "POST", path+"/start", "", nil)
		again := wait(200, "state=started&from_event_id="+started.EventID)
		if again.EventID <= started.EventID {
			t.Errorf("started again by event %s, which is not after %s", again.EventID, started.EventID)
		}
		// An event that is over can still be waited for.
		wait(200, "state=suspended&timeout=1&from_event_id="+started.EventID)

		var next api.Machine
		r.want(200, "POST", path, body("", ""), &next)
		if got := r.get(m.ID); got.State == "started" {
			t.Error("right after an update the old version is shown as the new one, started")
		}
		wait(200, "state=stopped&version="+m.Version) // the old version has ended
		wait(412, "state=started&version="+m.Version)
		if w := wait(200, "state=settled"); w.State != "started" || w.Version != next.Version {
			t.Errorf("settled as %+v, want the new version started", w)
		}
		r.want(200, "POST", path+"/stop", "", nil)
		wait(200, "state=stopped&version="+next.Version)

		broken := strings.Replace(body("", ""), string(volanttest.Image), string(volanttest.Crashing), 1)
		var bad api.Machine
		r.want(200, "POST", machines, broken, &bad)
		r.want(200, "GET", machines+"/"+bad.ID+"/wait?state=failed&timeout=600", "", nil)
		if x := r.exits(bad.ID); len(x) < 5 || x[0].Restarting || x[0].ExitCode != 1 || !x[1].Restarting || x[1].RequestedStop {
			t.Errorf("exits %+v, want many with code 1, all but the last to run again", x)
		}
		r.want(200, "DELETE", path, "", nil)
		wait(200, "state=destroyed")
		wait(200, "state=settled")
	})
}

func TestListsAreFiltered(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		a := r.create(`"metadata":{"role":"db","x":"1"}`, "")
		r.create(`"metadata":{"role":"web"}`, `"skip_launch":true`)
		r.wait(a.ID, "started")
		for query, want := range map[string]int{
			"": 2, "state=started": 1, "state=started,stopped": 2, "state=failed": 0, "region=ams": 0, "region=" + a.Region: 2,
			"metadata.role=db": 1, "metadata.role=db&metadata.x=2": 0, "metadata.none=": 2, "state=started&metadata.role=web": 0,
		} {
			var got []api.Machine
			r.want(200, "GET", machines+"?"+query, "", &got)
			if len(got) != want {
				t.Errorf("%s: %d machines, want %d", query, len(got), want)
			}
		}
		var got []map[string]any
		r.want(200, "GET", machines+"?summary=true", "", &got)
		for _, m := range got {
			if m["config"] != nil || m["host_status"] != "ok" || m["state"] == "" {
				t.Errorf("summary %v, want no config, and the host's status", m)
			}
		}
	})
}
