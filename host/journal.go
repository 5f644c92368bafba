package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/microvm"
)

// maxRecord bounds a record read from disk.
const maxRecord = 4 << 20

// record is what the journal knows of one machine: enough to go on after a crash at any moment.
type record struct {
	Schema     int            `json:"schema"`
	Machine    volant.Machine `json:"machine"` // the last wish seen
	State      volant.State   `json:"state"`
	Since      time.Time      `json:"since"`
	Reason     string         `json:"reason,omitempty"`
	Generation uint64         `json:"generation"`          // newest of the wish acted on
	Version    string         `json:"version,omitempty"`   // of the config that runs or sleeps
	Wanted     bool           `json:"wanted,omitempty"`    // a connection, a call or RunOn wants it awake
	Draining   bool           `json:"draining,omitempty"`  // until it is empty
	Drained    time.Time      `json:"drained_at,omitzero"` // since when; of no meaning while it does not
	Then       string         `json:"then,omitempty"`      // suspend or stop, when drained
	Mode       mode           `json:"mode,omitempty"`      // how the last boot was made
	Made       bool           `json:"made,omitempty"`      // State is starting and Handle is of this boot
	Boots      uint64         `json:"boots"`               // boots and restores that came to run the app
	Tries      uint64         `json:"tries"`               // boots begun and snapshots taken; names files
	Life       uint64         `json:"life,omitempty"`      // the try that booted the guest which runs or sleeps in a snapshot
	Failures   int            `json:"failures"`            // boots in a row that did not come to serve
	Served     bool           `json:"served,omitempty"`    // this run has served
	Exit       *volant.Exit   `json:"exit,omitempty"`      // of the last run
	Events     []volant.Event `json:"events,omitempty"`    // its history, the newest last; never changed in place
	ExitTold   bool           `json:"exit_told,omitempty"` // it is in Events
	Restarts   []time.Time    `json:"restarts,omitempty"`  // within the window of the restart policy
	BootID     string         `json:"boot_id,omitempty"`   // of the guest
	HostBoot   string         `json:"host_boot,omitempty"` // boot ID of the host that Handle is of

	Handle   *microvm.Handle `json:"handle,omitempty"`
	Snapshot *manifest       `json:"snapshot,omitempty"`
}

// schema is the version of records this binary writes. It refuses newer ones.
const schema = 1

// clone returns a copy that shares nothing which is changed in place.
func (r *record) clone() record {
	c := *r
	c.Restarts = append([]time.Time(nil), r.Restarts...)
	return c
}

// journal keeps records on disk, a file for each machine, and the highest term of each app.
type journal struct {
	dir   string
	crash func(point, when string)

	mu    sync.Mutex // guards terms
	terms map[volant.AppID]uint64
}

func openJournal(dir string, crash func(point, when string)) (*journal, error) {
	if crash == nil {
		crash = func(string, string) {}
	}
	j := &journal{dir: dir, crash: crash, terms: map[volant.AppID]uint64{}}
	if err := os.MkdirAll(j.machines(), 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	atomicfile.Sweep(j.machines())
	b, err := atomicfile.ReadChecked(j.termsFile(), maxRecord)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("open journal: terms: %w", err)
	default:
		if err := json.Unmarshal(b, &j.terms); err != nil {
			return nil, fmt.Errorf("open journal: terms: %w", err)
		}
	}
	return j, nil
}

func (j *journal) machines() string  { return filepath.Join(j.dir, "machines") }
func (j *journal) termsFile() string { return filepath.Join(j.dir, "terms") }

func (j *journal) file(id volant.MachineID) string {
	return filepath.Join(j.machines(), string(id)+".json")
}

// save puts r on record under the name of p.
func (j *journal) save(p point, r *record) error {
	j.crash(string(p), Before)
	r.Schema = schema
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record %s: %w", p, err)
	}
	if err := atomicfile.WriteAmong(j.file(volant.MachineID(r.Machine.ID)), b, 0o600); err != nil {
		return fmt.Errorf("record %s: %w", p, err)
	}
	j.crash(string(p), After)
	return nil
}

// remove takes the machine off the record.
func (j *journal) remove(p point, id volant.MachineID) error {
	j.crash(string(p), Before)
	if err := os.Remove(j.file(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("record %s: %w", p, err)
	}
	if err := atomicfile.SyncDir(j.machines()); err != nil {
		return fmt.Errorf("record %s: %w", p, err)
	}
	j.crash(string(p), After)
	return nil
}

// load reads all records. A damaged one is put aside and reported: its machine comes back by its wish.
func (j *journal) load() (recs []record, damaged []error, err error) {
	entries, err := os.ReadDir(j.machines())
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !volant.MachineID(id).Valid() {
			continue
		}
		path := filepath.Join(j.machines(), e.Name())
		b, err := atomicfile.ReadChecked(path, maxRecord)
		if err != nil && !errors.Is(err, atomicfile.ErrDamaged) {
			return nil, nil, fmt.Errorf("read journal: %w", err)
		}
		var r record
		if err == nil {
			r, err = decodeRecord(b)
		}
		if err == nil && r.Machine.ID != id {
			err = fmt.Errorf("record of machine %q in the file of %q", r.Machine.ID, id)
		}
		if errors.Is(err, volant.ErrPrecondition) {
			return nil, nil, fmt.Errorf("read journal: machine %s: %w", id, err)
		}
		if err != nil {
			damaged = append(damaged, fmt.Errorf("machine %s: %w", id, err))
			if err := os.Rename(path, path+".damaged"); err != nil {
				return nil, nil, fmt.Errorf("read journal: %w", err)
			}
			continue
		}
		recs = append(recs, r)
	}
	return recs, damaged, nil
}

// decodeRecord reads the content of a record's file.
func decodeRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, err
	}
	if r.Schema > schema {
		return record{}, volant.Errorf(volant.ErrPrecondition, "its record has schema %d, newer than %d", r.Schema, schema).
			WithRemedy("install the newer Volant again, or remove the machine before you go back")
	}
	if !volant.MachineID(r.Machine.ID).Valid() {
		return record{}, fmt.Errorf("record of %q: no machine ID", r.Machine.ID)
	}
	return r, nil
}

// checkTerm refuses a term lower than the highest seen for the app, and records a higher one. Zero is
// no term: a call that is not of a scaler.
func (j *journal) checkTerm(app volant.AppID, term uint64) error {
	if term == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch seen := j.terms[app]; {
	case term == seen:
		return nil
	case term < seen:
		return volant.Errorf(volant.ErrStaleTerm, "term %d of app %s is over: term %d has begun", term, app, seen)
	}
	j.crash(string(pointTerm), Before)
	next := maps.Clone(j.terms)
	next[app] = term
	if err := j.saveTerms(next); err != nil {
		return err
	}
	j.crash(string(pointTerm), After)
	return nil
}

// forgetTerm drops the term of an app that is gone.
func (j *journal) forgetTerm(app volant.AppID) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.terms[app]; !ok {
		return nil
	}
	next := maps.Clone(j.terms)
	delete(next, app)
	return j.saveTerms(next)
}

// saveTerms makes next the terms; j.mu is held.
func (j *journal) saveTerms(next map[volant.AppID]uint64) error {
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("record term: %w", err)
	}
	if err := atomicfile.WriteChecked(j.termsFile(), b, 0o600); err != nil {
		return fmt.Errorf("record term: %w", err)
	}
	j.terms = next
	return nil
}
