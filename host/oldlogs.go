package host

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

// Logs of destroyed machines are kept for a while: what a machine said last is asked for when it is gone.
const (
	oldLogAge   = 7 * 24 * time.Hour
	oldLogBytes = 8 << 20 // of one app, by default; the newest stay
)

func (h *Host) oldLogDir(app volant.AppID, id volant.MachineID) string {
	return filepath.Join(h.cfg.Dir, dirOldLogs, string(app), string(id))
}

// keepLog moves a machine's log to those of destroyed machines. It may be repeated.
func (h *Host) keepLog(app volant.AppID, id volant.MachineID) error {
	to := h.oldLogDir(app, id)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	now := time.Now()
	err := os.Rename(h.logDir(id), to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it wrote nothing, or it was moved before
	}
	if err != nil {
		return err
	}
	return errors.Join(os.Chtimes(to, now, now), h.trimOldLogs(app))
}

// OldLogs are the destroyed machines of an app whose logs are kept, newest first.
func (h *Host) OldLogs(app volant.AppID) []volant.MachineID {
	var out []volant.MachineID
	for _, l := range h.oldLogs(app) {
		out = append(out, l.id)
	}
	return out
}

type oldLog struct {
	id   volant.MachineID
	when time.Time // of its end
	size int64
}

func (h *Host) oldLogs(app volant.AppID) []oldLog {
	dir := filepath.Join(h.cfg.Dir, dirOldLogs, string(app))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // there are none
	}
	var out []oldLog
	for _, e := range entries {
		fi, err := e.Info()
		if id := volant.MachineID(e.Name()); err == nil && id.Valid() {
			l := oldLog{id: id, when: fi.ModTime()}
			for i := range 2 {
				if fi, err := os.Stat(newLogbook(filepath.Join(dir, e.Name()), 0).path(i)); err == nil {
					l.size += fi.Size()
				}
			}
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b oldLog) int { return cmp.Or(b.when.Compare(a.when), cmp.Compare(a.id, b.id)) })
	return out
}

// trimOldLogs removes what is too old or too much.
func (h *Host) trimOldLogs(app volant.AppID) error {
	var errs []error
	total := int64(0)
	for _, l := range h.oldLogs(app) {
		total += l.size
		if total > cmp.Or(h.cfg.OldLogs, oldLogBytes) || time.Since(l.when) > oldLogAge {
			errs = append(errs, os.RemoveAll(h.oldLogDir(app, l.id)))
		}
	}
	return errors.Join(errs...)
}

// sweepOldLogs removes what grew too old while the host did not run, and directories of apps with none left.
func (h *Host) sweepOldLogs() error {
	dir := filepath.Join(h.cfg.Dir, dirOldLogs)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		app := volant.AppID(e.Name())
		errs = append(errs, h.trimOldLogs(app))
		if len(h.oldLogs(app)) == 0 {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// logbookOf is a machine's logbook, be the machine destroyed.
func (h *Host) logbookOf(id volant.MachineID) (*logbook, error) {
	m, err := h.find(id)
	if err == nil && m.record().State != volant.StateDestroyed {
		return m.logs, nil
	}
	if id.Valid() {
		if old, gerr := filepath.Glob(filepath.Join(h.cfg.Dir, dirOldLogs, "*", string(id))); gerr == nil && len(old) > 0 {
			return newLogbook(old[0], 0), nil
		}
	}
	return nil, cmp.Or(err, error(volant.Errorf(volant.ErrNotFound, "the log of machine %s is not kept any more", id)))
}
