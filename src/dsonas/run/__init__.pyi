from .console import Reporter as Reporter, readable_count as readable_count
from .fitting import (
    final_latency as final_latency,
    fit_to_budget as fit_to_budget,
    run_measures as run_measures,
    transferred as transferred,
)
from .interrupts import StopSignal as StopSignal
from .measuring import (
    EVALUATION_BATCH as EVALUATION_BATCH,
    Prediction as Prediction,
    classify_test as classify_test,
    evaluate_run as evaluate_run,
    predict_images as predict_images,
    test_data as test_data,
)
from .network_files import FinishedNetwork as FinishedNetwork, Shape as Shape
from .pipeline import Job as Job
from .recipes import (
    read_settings as read_settings,
    recipe_names as recipe_names,
    recipe_path as recipe_path,
)
from .run_config import (
    GROWTH as GROWTH,
    RunConfig as RunConfig,
    changed_settings as changed_settings,
    fitting_batch as fitting_batch,
    part_sizes as part_sizes,
    renamed as renamed,
    upgraded as upgraded,
)
from .runs import (
    COMPRESSED_FILE as COMPRESSED_FILE,
    JOBS_FILE as JOBS_FILE,
    Preprocessing as Preprocessing,
    RunError as RunError,
    RunFolder as RunFolder,
    compressed_from_json as compressed_from_json,
    load_chain as load_chain,
    versions as versions,
)
from .tracking import Tracking as Tracking
from .user_jobs import ChoiceJob as ChoiceJob, CompressJob as CompressJob
from .user_models import CHOICES_FILE as CHOICES_FILE, choices_from_json as choices_from_json
