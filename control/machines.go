package control

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
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
		Config:   m.Config, Events: []api.MachineEvent{}, Checks: have.Checks, HostStatus: s.hostStatus(m), Cordoned: m.Cordoned,
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

// The words for how the host of a machine is.
const (
	HostOK          = "ok"
	HostUnknown     = "unknown"     // nothing was heard of it yet
	HostUnreachable = "unreachable" // it is not heard: the machine's state is its last word
)

func (s *Server) hostStatus(m *volant.Machine) string {
	switch {
	case gone(m) || s.HostStatus == nil:
		return HostOK
	case !m.Lost.IsZero():
		return HostUnreachable
	}
	return s.HostStatus(m.Node)
}

// machineState is the host's word, and for a machine it has not spoken of, what the wish implies. One that is
// still what it was before its newest config is being updated.
func machineState(m *volant.Machine, have volant.Have) volant.State {
	switch {
	case have.State == "" && gone(m), m.Tombstone:
		return volant.StateDestroyed
	case have.State == "":
		return volant.StateCreated
	case have.Version == "" || have.Version == m.Version || gone(m):
		return have.State
	}
	switch have.State {
	case volant.StateStarted, volant.StateStarting, volant.StateStopping, volant.StateSuspending, volant.StateSuspended:
		return volant.StateUpdating
	default:
		return have.State
	}
}

// filter selects machines by the parameters of a list.
type filter struct {
	deleted  bool
	region   string
	states   []string
	metadata map[string]string
}

func (c *call) filter() filter {
	f := filter{deleted: c.flag("include_deleted"), metadata: map[string]string{}}
	for k, v := range c.r.URL.Query() {
		key, isMeta := strings.CutPrefix(k, "metadata.")
		switch {
		case isMeta:
			f.metadata[key] = v[0]
		case k == "region":
			f.region = v[0]
		case k == "state":
			for _, list := range v {
				f.states = append(f.states, strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })...)
			}
		}
	}
	return f
}

func (f *filter) takes(m *volant.Machine, st volant.State) bool {
	for k, v := range f.metadata {
		if m.Config.Metadata[k] != v {
			return false
		}
	}
	switch {
	case st == volant.StateDestroyed && !f.deleted && !slices.Contains(f.states, string(st)):
		return false
	case f.region != "" && string(m.Region) != f.region:
		return false
	}
	return len(f.states) == 0 || slices.Contains(f.states, string(st))
}

func (s *Server) listMachines(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	slots, f, summary := s.Traffic.Slots(a.App), c.filter(), c.flag("summary")
	out := []api.Machine{}
	for _, m := range snap.Machines(a.App) {
		have, _ := snap.Have(volant.MachineID(m.ID))
		if !f.takes(m, machineState(m, have)) {
			continue
		}
		v := s.machineView(snap, m, slots)
		if summary {
			v.Config, v.Checks = volant.MachineConfig{}, []volant.Check{}
		} else {
			v.Events = eventViews(s.history(m, shownEvents))
		}
		out = append(out, v)
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
	reply(w, http.StatusOK, s.fullView(a, m))
	return nil
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
	m := newMachine(a, &in.CreateMachine, image, volant.Region(cmp.Or(in.Region, string(s.home(a)))))
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
	v := s.fullView(a, m)
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
func (s *Server) fullView(a *volant.App, m *volant.Machine) api.Machine {
	snap := s.Catalog.Snapshot()
	if now, ok := snap.Machine(volant.MachineID(m.ID)); ok {
		m = now
	}
	v := s.machineView(snap, m, s.Traffic.Slots(a.App))
	v.Events = eventViews(s.history(m, shownEvents))
	return v
}

// home is where a machine made by hand goes that names no region.
func (s *Server) home(a *volant.App) volant.Region {
	if s.Home != nil {
		return s.Home(a)
	}
	return s.Region
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
		if gone(m) {
			return destroyedError(m)
		}
		return s.change(w, c, a, m, rule, func(m *volant.Machine) error {
			m.Cordoned = on
			return nil
		})
	}
}

// change writes a machine's wish, waits until it can be read, and audits it.
func (s *Server) change(w http.ResponseWriter, c *call, a *volant.App, m *volant.Machine, rule string, edit func(*volant.Machine) error) error {
	if err := s.commit(c, m, store.Edit(m.Key(), edit)); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), rule, "machine "+m.ID+": "+strings.ReplaceAll(rule, "_", " "))
	reply(w, http.StatusOK, api.Done{OK: true})
	return nil
}

// wished is the Change of a machine's wish for its running.
func wished(m *volant.Machine, run volant.Run) store.Change {
	return store.Edit(m.Key(), func(m *volant.Machine) error {
		if m.Run == volant.RunDestroyed {
			return destroyedError(m)
		}
		m.Run = run
		return nil
	})
}
