package proxy

// wakeView is what planWakes looks at: one app whose connections wait.
type wakeView struct {
	queued  int  // connections that wait for a slot and may wake a machine
	soft    int  // soft limit of the service they wait for
	serving int  // machines that serve, full ones as well
	coming  int  // machines that boot, or were asked to wake
	canGrow bool // a scaler holds the app and makes or wakes machines itself
	noWake  bool
}

// planWakes says how many sleeping machines to wake now. One when nothing serves or boots; more only
// where no scaler holds the app: then one per ceil(queued / soft), less those that are coming.
func planWakes(v wakeView) int {
	if v.noWake || v.queued == 0 {
		return 0
	}
	need := 0
	if v.serving+v.coming == 0 {
		need = 1
	}
	if !v.canGrow {
		soft := max(v.soft, 1)
		need = max(need, (v.queued+soft-1)/soft-v.coming)
	}
	return need
}
