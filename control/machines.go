package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// machine finds the machine of the path and authorizes the call. Destroyed ones can still be read.
func (s *Server) machine(c *call) (*volant.App, *volant.Machine, *catalog.Snapshot, error) {
	a, snap, err := s.app(c)
	if err != nil {
		return nil, nil, nil, err
	}
	id := volant.MachineID(c.r.PathValue("id"))
	m, ok := snap.Machine(id)
	if !ok || m.App != a.App {
		return nil, nil, nil, volant.Errorf(volant.ErrNotFound, "app %s has no machine %q", a.Name, id).
			WithRemedy("see `volant machine list --app %s`", a.Name)
	}
	return a, m, snap, nil
}

func (s *Server) machineView(snap *catalog.Snapshot, m *volant.Machine, slots map[volant.MachineID]int) api.Machine {
	id := volant.MachineID(m.ID)
	have, _ := snap.Have(id)
	v := api.Machine{
		ID: m.ID, Name: m.Name, State: string(machineState(m, have)), Region: string(m.Region),
		InstanceID: m.Version, Version: m.Version, CreatedAt: m.Created, UpdatedAt: m.Updated,
		ImageRef: imageRef(m.Config.Image, m.Image),
		Config:   m.Config, Events: []api.MachineEvent{}, Checks: have.Checks, HostStatus: "ok", Cordoned: m.Cordoned,
		Node: string(m.Node), Run: string(m.Run), Release: m.Release, Draining: have.Draining, Managed: m.Managed(),
		Slots: slots[id], Since: have.Since, Reason: have.Reason, Exit: have.Exit, Boots: have.Boots,
	}
	if have.IP.IsValid() {
		v.IP = have.IP.String()
	}
	if have.PrivateIP.IsValid() {
		v.PrivateIP = have.PrivateIP.String()
	}
	if v.Checks == nil {
		v.Checks = []volant.Check{}
	}
	return v
}

// machineState is the host's word, and for a machine it has not spoken of, what the wish implies.
func machineState(m *volant.Machine, have volant.Have) volant.State {
	switch {
	case have.State != "":
		return have.State
	case gone(m):
		return volant.StateDestroyed
	}
	return volant.StateCreated
}

func (s *Server) listMachines(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	slots := s.Traffic.Slots(a.App)
	region, states := c.r.URL.Query().Get("region"), c.r.URL.Query().Get("state")
	out := []api.Machine{}
	for _, m := range snap.Machines(a.App) {
		v := s.machineView(snap, m, slots)
		switch {
		case gone(m) && v.State == string(volant.StateDestroyed) && !c.flag("include_deleted"):
		case region != "" && v.Region != region:
		case states != "" && !slices.Contains(strings.Split(states, ","), v.State):
		default:
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b api.Machine) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) getMachine(w http.ResponseWriter, c *call) error {
	a, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	v, err := s.fullView(c, a, m)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, v)
	return nil
}

func (s *Server) machineEvents(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	limit, err := c.number("limit", 20, 1, 50)
	if err != nil {
		return err
	}
	events, err := s.events(c, m, limit)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, events)
	return nil
}

// events tells a machine's history out of the reasons on record.
func (s *Server) events(c *call, m *volant.Machine, limit int) ([]api.MachineEvent, error) {
	recs, err := s.Reasons.Query(c.ctx(), why.Query{
		Machine: volant.MachineID(m.ID), Limit: limit,
		Kinds: []why.Kind{why.Wake, why.Sleep, why.Machine, why.Change, why.Placement},
	})
	if err != nil {
		return nil, err
	}
	out := []api.MachineEvent{}
	for _, r := range recs {
		source := "host"
		if r.Kind == why.Change {
			source = "user"
		}
		out = append(out, api.MachineEvent{
			ID: fmt.Sprintf("%x", r.Time.UnixNano()), Type: string(r.Kind), Status: r.Rule, Source: source,
			Timestamp: r.Time.UnixMilli(), Request: map[string]any{"text": r.Text},
		})
	}
	return out, nil
}

func (s *Server) createMachine(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in machineInput
	if err := c.read(w, &in); err != nil {
		return err
	}
	cfg, err := decodeConfig(in.Config)
	if err != nil {
		return err
	}
	if err := errors.Join(checkTTL(in.LeaseTTL), s.checkName(a, in.Name), s.checkSecrets(c, a, in.MinSecretsVersion)); err != nil {
		return err
	}
	image, err := s.checkMachine(c, a.Org, &cfg, nil)
	if err != nil {
		return err
	}
	in.CreateMachine.Config = cfg
	m := newMachine(a, &in.CreateMachine, image, volant.Region(cmp.Or(in.Region, string(s.Region))))
	if m.Node, err = s.Machines.Place(c.ctx(), m); err != nil {
		return err
	}
	changes := []store.Change{store.Creation(m)}
	var lease *volant.Lease
	if in.LeaseTTL > 0 {
		lease = newLease(c, m, "", in.LeaseTTL)
		changes = append(changes, store.Creation(lease))
	}
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, changes...)
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, m.App, volant.MachineID(m.ID), "machine_created", fmt.Sprintf("machine %s was created by hand", m.ID))
	v, err := s.fullView(c, a, m)
	if err != nil {
		return err
	}
	if lease != nil {
		v.Nonce = lease.Nonce
	}
	reply(w, http.StatusOK, v)
	return nil
}

// checkName says what is wrong with the name of a new machine, or nil. Others may take it at the same moment:
// names are for people, and nothing is found by them.
func (s *Server) checkName(a *volant.App, name string) error {
	if len(name) > 63 || strings.ContainsFunc(name, unicode.IsControl) {
		return volant.Invalidf("name %q: use at most 63 printable characters", name)
	}
	for _, m := range s.Catalog.Snapshot().Machines(a.App) {
		if name != "" && m.Name == name && !gone(m) {
			return volant.Errorf(volant.ErrExists, "machine %s of app %s is called %q already", m.ID, a.Name, name).
				WithRemedy("choose another name, or leave it out")
		}
	}
	return nil
}

// checkMachine checks a machine's config, fills in its defaults, and sees to its image, which is the old
// one's where it has the same name.
func (s *Server) checkMachine(c *call, org volant.OrgID, cfg *volant.MachineConfig, old *volant.Machine) (volant.Digest, error) {
	if err := checkConfig(cfg); err != nil {
		return "", err
	}
	cfg.Guest = cfg.Guest.WithDefaults()
	ref := cfg.Image
	if old != nil && cfg.Image == old.Config.Image {
		ref = string(old.Image)
	}
	return s.image(c.ctx(), c, org, ref)
}

// checkSecrets refuses a machine that wants newer secrets than there are.
func (s *Server) checkSecrets(c *call, a *volant.App, least uint64) error {
	if least == 0 {
		return nil
	}
	var have struct {
		Version uint64 `json:"version"`
	}
	e, err := s.Store.Get(c.ctx(), volant.RecordKey(volant.KindSecrets, a.App, volant.SecretsID))
	if err == nil {
		err = json.Unmarshal(e.Value, &have)
	}
	if err != nil && !errors.Is(err, volant.ErrNotFound) {
		return err
	}
	if have.Version < least {
		return volant.Errorf(volant.ErrPrecondition, "the secrets of app %s have version %d, below min_secrets_version %d", a.Name, have.Version, least).
			WithRemedy("set the secrets first")
	}
	return nil
}

func newMachine(a *volant.App, in *api.CreateMachine, image volant.Digest, region volant.Region) *volant.Machine {
	id := volant.NewMachineID()
	m := &volant.Machine{
		Name: cmp.Or(in.Name, "m-"+string(id)[:6]), Region: region, Run: volant.RunOn, Image: image,
		Config: in.Config, Version: ulid.Make().String(), Launch: volant.LaunchStart,
		Cordoned: in.SkipServiceRegistration, SkipSecrets: in.SkipSecrets,
	}
	if len(in.Config.Services) > 0 {
		m.Run = volant.RunAuto
	}
	if in.SkipLaunch {
		rest(m)
	}
	m.Meta = volant.Meta{Kind: volant.KindMachine, Org: a.Org, App: a.App, ID: string(id)}
	return m
}

// fullView is a machine with its history, as it is now.
func (s *Server) fullView(c *call, a *volant.App, m *volant.Machine) (api.Machine, error) {
	snap := s.Catalog.Snapshot()
	if now, ok := snap.Machine(volant.MachineID(m.ID)); ok {
		m = now
	}
	v := s.machineView(snap, m, s.Traffic.Slots(a.App))
	var err error
	v.Events, err = s.events(c, m, 20)
	return v, err
}

func destroyedError(m *volant.Machine) error {
	return volant.Errorf(volant.ErrPrecondition, "failed_precondition: machine %s is destroyed", m.ID).WithRemedy("make a new one")
}

// destroyMachine writes the wish; the host ends the machine and only then the record is a tombstone.
func (s *Server) destroyMachine(w http.ResponseWriter, c *call) error {
	a, m, snap, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return volant.Errorf(volant.ErrNotFound, "machine %s is destroyed already", m.ID)
	}
	have, _ := snap.Have(volant.MachineID(m.ID))
	force := c.flag("force") || c.flag("kill")
	if running := have.State.Awake() || have.State == volant.StateStarting; running && !force {
		return volant.Errorf(volant.ErrPrecondition, "machine %s is %s", m.ID, have.State).
			WithRemedy("stop it first, or force its destruction with its connections")
	}
	return s.change(w, c, a, m, "machine_destroyed", func(m *volant.Machine) error {
		m.Run = volant.RunDestroyed
		return nil
	})
}

func (s *Server) cordon(on bool) handler {
	rule := map[bool]string{true: "machine_cordoned", false: "machine_uncordoned"}[on]
	return func(w http.ResponseWriter, c *call) error {
		a, m, _, err := s.machine(c)
		if err != nil {
			return err
		}
		return s.change(w, c, a, m, rule, func(m *volant.Machine) error {
			m.Cordoned = on
			return nil
		})
	}
}

// change writes a machine's wish, waits until it can be read, and audits it.
func (s *Server) change(w http.ResponseWriter, c *call, a *volant.App, m *volant.Machine, rule string, edit func(*volant.Machine) error) error {
	if _, err := s.commit(c, m, store.Edit(m.Key(), edit)); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), rule, "machine "+m.ID+": "+strings.ReplaceAll(rule, "_", " "))
	reply(w, http.StatusOK, api.Done{OK: true})
	return nil
}

// act does a call to the machine's host, audits it and answers ok.
func (s *Server) act(w http.ResponseWriter, c *call, rule string, do func(ctx context.Context, m *volant.Machine) error) error {
	a, m, snap, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return destroyedError(m)
	}
	if err := s.unleased(c, m); err != nil {
		return err
	}
	before := machineState(m, first(snap.Have(volant.MachineID(m.ID))))
	if err := do(c.ctx(), m); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), rule, "machine "+m.ID+": "+strings.ReplaceAll(rule, "_", " "))
	reply(w, http.StatusOK, api.Acted{OK: true, PreviousState: string(before)})
	return nil
}

func first[A, B any](a A, _ B) A { return a }

// startMachine wakes an auto machine; one whose wish is off is wished on again.
func (s *Server) startMachine(w http.ResponseWriter, c *call) error {
	return s.act(w, c, "start_asked", func(ctx context.Context, m *volant.Machine) error {
		if m.Run != volant.RunOff {
			return s.Machines.Wake(ctx, volant.MachineID(m.ID), "asked through the API by "+c.who.name)
		}
		return s.wish(c, m, volant.RunOn)
	})
}

func (s *Server) wish(c *call, m *volant.Machine, run volant.Run) error {
	_, err := s.commit(c, m, store.Edit(m.Key(), func(m *volant.Machine) error {
		m.Run = run
		return nil
	}))
	return err
}

func (s *Server) stopMachine(w http.ResponseWriter, c *call) error { return s.sleep(w, c, "stop") }

func (s *Server) suspendMachine(w http.ResponseWriter, c *call) error {
	return s.sleep(w, c, "suspend")
}

// sleep puts an auto machine to sleep. One that is wished on is stopped by a new wish.
func (s *Server) sleep(w http.ResponseWriter, c *call, how string) error {
	rests := map[string]volant.State{"stop": volant.StateStopped, "suspend": volant.StateSuspended}[how]
	return s.act(w, c, how+"_asked", func(ctx context.Context, m *volant.Machine) error {
		if have, _ := s.Catalog.Snapshot().Have(volant.MachineID(m.ID)); have.State == rests && m.Run == volant.RunAuto {
			return nil // it is what was asked for
		}
		if m.Run == volant.RunOn {
			if how == "suspend" {
				return volant.Errorf(volant.ErrPrecondition, "machine %s is wished on, so it cannot be suspended", m.ID).WithRemedy("stop it, or give it a service")
			}
			return s.wish(c, m, volant.RunOff)
		}
		return s.Machines.Sleep(ctx, volant.MachineID(m.ID), how, c.who.name)
	})
}

func (s *Server) restartMachine(w http.ResponseWriter, c *call) error {
	return s.act(w, c, "restart_asked", func(ctx context.Context, m *volant.Machine) error {
		return s.Machines.Restart(ctx, volant.MachineID(m.ID), c.who.name)
	})
}

// waitMachine answers when the machine has reached the state, or 408.
func (s *Server) waitMachine(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	want := cmp.Or(c.r.URL.Query().Get("state"), string(volant.StateStarted))
	known := []string{"started", "stopped", "suspended", "destroyed", "failed", "settled"}
	if !slices.Contains(known, want) {
		return volant.Invalidf("state=%q: use one of %s", want, strings.Join(known, ", "))
	}
	seconds, err := c.number("timeout", 60, 1, 60)
	if err != nil {
		return err
	}
	var last volant.State
	err = s.untilSnapshot(c, time.Duration(seconds)*time.Second, func(snap *catalog.Snapshot) (bool, error) {
		now, ok := snap.Machine(volant.MachineID(m.ID))
		if !ok {
			now = m
		}
		last = machineState(now, first(snap.Have(volant.MachineID(m.ID))))
		return string(last) == want || want == "settled" && settled(last), nil
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("%w: machine %s did not reach %s in %d s; it is %s", errTimeout, m.ID, want, seconds, last)
	}
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, api.Waited{OK: true, State: string(last), Version: m.Version})
	return nil
}

func settled(st volant.State) bool {
	switch st {
	case volant.StateStarting, volant.StateSuspending, volant.StateStopping, volant.StateDestroying:
		return false
	default:
		return true
	}
}
