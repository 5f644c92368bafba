package host

import "slices"

// Point names a write-ahead record. A test can stop the process before and after each.
type point string

// The points, in the order of a machine's life.
const (
	pointWish          point = "wish"           // a newer wish
	pointTerm          point = "term"           // a newer term of an app's scaler
	pointDrain         point = "drain"          // draining set or cleared
	pointBootBegin     point = "boot-begin"     // a VM is about to be made
	pointBootMade      point = "boot-made"      // its process runs, no guest instruction has
	pointBootServed    point = "boot-served"    // its app runs
	pointBootFailed    point = "boot-failed"    // it did not come to that
	pointExit          point = "exit"           // the app ended, or the VM did
	pointRestart       point = "restart"        // the app is about to run again in the same VM
	pointSuspendBegin  point = "suspend-begin"  // sealed; the snapshot is about to be written
	pointSuspendTaken  point = "suspend-taken"  // the snapshot is whole, the VM paused
	pointSuspendUndone point = "suspend-undone" // the snapshot is void, the VM about to run on
	pointSuspendDone   point = "suspend-done"   // no process any more
	pointDiscard       point = "discard"        // the snapshot is void and about to be deleted
	pointStopBegin     point = "stop-begin"     // the app is about to be asked to end
	pointStopDone      point = "stop-done"      // no process any more
	pointDestroyBegin  point = "destroy-begin"  // everything of the machine is about to go
	pointDestroyDone   point = "destroy-done"   // its record is about to go too
	pointTemplateBegin point = "template-begin" // a template is about to be made
	pointTemplateDone  point = "template-done"  // it is whole
)

var points = []point{
	pointWish, pointTerm, pointDrain, pointBootBegin, pointBootMade, pointBootServed,
	pointBootFailed, pointExit, pointRestart, pointSuspendBegin, pointSuspendTaken, pointSuspendUndone,
	pointSuspendDone, pointDiscard, pointStopBegin, pointStopDone, pointDestroyBegin, pointDestroyDone,
	pointTemplateBegin, pointTemplateDone,
}

// Points are the names of all write-ahead records, which Config.Crash is called with.
func Points() []string {
	names := make([]string, len(points))
	for i, p := range points {
		names[i] = string(p)
	}
	return slices.Clip(names)
}

// The moments at which Config.Crash is called for each point.
const (
	Before = "before" // nothing of it is on record
	After  = "after"  // it is on record, and nothing of what it announces was done
)
